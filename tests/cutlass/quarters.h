// How an m16n8k32 product is made of four m8n8k16 ones: which registers of sums, A and B each of
// them takes.
#pragma once

#include "cuda/conv_sizes.h"

struct Quarter {
  int first_sum;
  int a;
  int b;
};

constexpr int kQuarters = 4;

DAQ_BOTH constexpr Quarter quarter(int i) { return {2 * (i % 2), i, i / 2}; }
