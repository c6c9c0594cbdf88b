# cohort_module(NAME TIER n SOURCES s... [DEPS modules...] [PRIVATE_DEPS modules or targets...] [COMMANDS sources...])
#
# One module of the engine: the static library cohort_NAME, alias cohort::NAME, with the public headers under include/.
# A module links modules of lower tiers only; anything else is a configure error. DEPS are the modules whose headers its
# public headers include; third-party packages belong in PRIVATE_DEPS. COMMANDS are the module's subcommands of the program
# `cohort`: compiled into the program only, never into the library.
define_property(TARGET PROPERTY COHORT_TIER)
set_property(GLOBAL PROPERTY COHORT_MODULES "")

function(cohort_module name)
  cmake_parse_arguments(arg "" "TIER" "SOURCES;DEPS;PRIVATE_DEPS;COMMANDS" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS OR NOT DEFINED arg_TIER)
    message(FATAL_ERROR "cohort_module(${name}): TIER is required; not understood: ${arg_UNPARSED_ARGUMENTS}")
  endif()
  set(target cohort_${name})
  add_library(${target} STATIC ${arg_SOURCES})
  add_library(cohort::${name} ALIAS ${target})
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/include/*.h)
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS include FILES ${headers})
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:cohort_flags> PUBLIC Threads::Threads)
  set_target_properties(${target} PROPERTIES COHORT_TIER ${arg_TIER} EXPORT_NAME ${name})

  foreach(visibility IN ITEMS PUBLIC PRIVATE)
    if(visibility STREQUAL PUBLIC)
      set(deps ${arg_DEPS})
    else()
      set(deps ${arg_PRIVATE_DEPS})
    endif()
    foreach(dep IN LISTS deps)
      if(TARGET cohort_${dep})
        get_target_property(tier cohort_${dep} COHORT_TIER)
        if(NOT tier LESS arg_TIER)
          message(FATAL_ERROR "module ${name} (tier ${arg_TIER}) may not link module ${dep} (tier ${tier}): "
                              "dependencies go to lower tiers only")
        endif()
        target_link_libraries(${target} ${visibility} cohort_${dep})
      elseif(TARGET ${dep} OR dep MATCHES "^-|::|^[$]<" OR EXISTS "${dep}")
        if(visibility STREQUAL PUBLIC)
          message(FATAL_ERROR "module ${name}: ${dep} is no module; third-party packages belong in PRIVATE_DEPS")
        endif()
        target_link_libraries(${target} PRIVATE ${dep})
      else()
        message(FATAL_ERROR "module ${name}: unknown dependency ${dep} (declared later, or misspelt?)")
      endif()
    endforeach()
  endforeach()

  set_property(GLOBAL APPEND PROPERTY COHORT_MODULES ${target})
  foreach(source IN LISTS arg_COMMANDS)
    set_property(GLOBAL APPEND PROPERTY COHORT_COMMANDS ${CMAKE_CURRENT_SOURCE_DIR}/${source})
  endforeach()
endfunction()

# The program `cohort`: main.cc and every module's COMMANDS.
function(cohort_program)
  get_property(commands GLOBAL PROPERTY COHORT_COMMANDS)
  get_property(modules GLOBAL PROPERTY COHORT_MODULES)
  add_executable(cohort_program ${PROJECT_SOURCE_DIR}/src/main.cc ${commands})
  set_target_properties(cohort_program PROPERTIES OUTPUT_NAME cohort)
  target_include_directories(cohort_program PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(cohort_program PRIVATE cohort_flags ${modules} CLI11::CLI11 fmt::fmt
                                               nlohmann_json::nlohmann_json ${COHORT_GLOO_LIBRARY})
endfunction()
