# Read by each project() of llama.cpp while scripts/setup.sh builds llama-cpp-python for a test, and scripts/sanitize.sh a
# llama.cpp of its own: no more than that needs, and the many small files of the models a few at a time.
if(PROJECT_NAME STREQUAL "ggml")
    set(CMAKE_UNITY_BUILD OFF)
else()
    set(CMAKE_UNITY_BUILD ON)
    set(LLAMA_BUILD_COMMON OFF)
endif()
