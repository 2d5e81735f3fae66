#!/usr/bin/env bash
# Puts the peers into target/peers-venv: about 6 GB of wheels, and some minutes of compiling llama.cpp.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m venv target/peers-venv
pip=target/peers-venv/bin/pip
# llama.cpp for this machine's instruction sets; its tools and servers are not needed.
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF"
export CXXFLAGS="-include $PWD/benches/peers/ldtilecfg.h"
nice -n 19 "$pip" install --no-cache-dir --no-binary llama-cpp-python -r benches/peers/requirements.txt
target/peers-venv/bin/python -c 'import torch, transformers, llama_cpp; print("torch", torch.__version__)'
