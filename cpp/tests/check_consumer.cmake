# Installs the library into a scratch prefix, then configures, builds and runs cpp/examples, and the README's C++ example,
# against it.
file(REMOVE_RECURSE ${SCRATCH})
file(READ ${README} readme)
if(NOT readme MATCHES "```cpp\n(.*)\n```\n")
  message(FATAL_ERROR "no C++ example in ${README}")
endif()
string(REGEX REPLACE "\n```.*" "" code "${CMAKE_MATCH_1}")
file(WRITE ${SCRATCH}/readme.cpp "${code}\n")
foreach(command
    "--install;${BUILD};--prefix;${SCRATCH}/prefix;--component;cpp"
    "-S;${SOURCE};-B;${SCRATCH}/build;-G;${GENERATOR};-D;CMAKE_PREFIX_PATH=${SCRATCH}/prefix;-D;README_EXAMPLE=${SCRATCH}/readme.cpp"
    "--build;${SCRATCH}/build"
    "-E;chdir;${SCRATCH}/build;./lstm"
    "-E;chdir;${SCRATCH}/build;./readme")
  execute_process(COMMAND ${CMAKE_COMMAND} ${command} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
