// Stands in for a header that PyTorch's CUDA builds generate and its CPU builds lack, so that CUDA
// sources compile beside either.
#pragma once
