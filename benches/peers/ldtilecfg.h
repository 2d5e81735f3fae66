// GCC 12's `_tile_loadconfig` tells the compiler that `ldtilecfg` reads 8 bytes where it reads 64, so the rest of the
// configuration may never be stored and llama.cpp's AMX kernels fault. `setup.sh` puts this in front of its sources.
#pragma once
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
static inline void duquant_peer_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])config));
}
#define _tile_loadconfig duquant_peer_tile_loadconfig
#endif
