// All kernels, as one unit of compilation. `list.h` names them.
#include "common.cuh"
#include "vector.cuh"
#include "attend.cuh"
#include "quantize.cuh"
#include "matmul.cuh"
