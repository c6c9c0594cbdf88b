# install(): headers, static libraries, the program, find_package(cohort) and pkg-config.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(modules GLOBAL PROPERTY COHORT_MODULES)
get_property(protos GLOBAL PROPERTY COHORT_PROTO_LIBRARIES)

# cohort::cohort is all of it.
add_library(cohort_all INTERFACE)
add_library(cohort::cohort ALIAS cohort_all)
set_target_properties(cohort_all PROPERTIES EXPORT_NAME cohort)
target_link_libraries(cohort_all INTERFACE ${modules})
target_compile_features(cohort_all INTERFACE cxx_std_20)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/cohort)
install(TARGETS ${modules} ${protos} cohort_all EXPORT cohortTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS cohort_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(EXPORT cohortTargets NAMESPACE cohort:: DESTINATION ${package_dir})

if(MPI_CXX_FOUND)
  set(COHORT_WITH_MPI TRUE)
else()
  set(COHORT_WITH_MPI FALSE)
endif()
configure_package_config_file(${PROJECT_SOURCE_DIR}/scripts/cmake/cohortConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/cohortConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cohortConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cohortConfig.cmake ${PROJECT_BINARY_DIR}/cohortConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/scripts/cmake/FindOneDNN.cmake
        DESTINATION ${package_dir})

# Static archives: most dependent first, as the linker wants them.
set(archives "")
foreach(target IN LISTS modules protos)
  string(PREPEND archives "-l${target} ")
endforeach()
set(COHORT_PC_LIBS "-Wl,--start-group ${archives}-Wl,--end-group -ldnnl -lisal -lgomp -lpthread")
if(COHORT_WITH_CUDA)
  string(APPEND COHORT_PC_LIBS " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -ldl")
endif()
set(COHORT_PC_REQUIRES "spdlog fmt zlib")
if(COHORT_RPC)
  string(APPEND COHORT_PC_REQUIRES " grpc++ protobuf")
endif()
if(COHORT_IMAGES)
  string(APPEND COHORT_PC_REQUIRES " libjpeg libpng")
endif()
if(COHORT_HTTP)
  string(APPEND COHORT_PC_REQUIRES " libcurl")
endif()
if(COHORT_WITH_MPI)
  string(APPEND COHORT_PC_REQUIRES " ompi-cxx")
endif()
# Relative, so that the folder may be moved, or installed with another --prefix.
file(RELATIVE_PATH COHORT_PC_TO_PREFIX /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
configure_file(${PROJECT_SOURCE_DIR}/scripts/cmake/cohort.pc.in ${PROJECT_BINARY_DIR}/cohort.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cohort.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
