set(COHORT_INSTALL_CONFIG_DIR lib/cmake/cohort)
