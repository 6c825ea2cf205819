// Every kernel, once: KERNEL(name) is whatever the includer makes of it.
KERNEL(add_rows)
KERNEL(sum_rows)
KERNEL(add_bias)
KERNEL(silu_mul)
KERNEL(combine)
KERNEL(rms_norm)
KERNEL(rotate)
KERNEL(store_rows)
KERNEL(mla_query)
KERNEL(attend_scores)
KERNEL(attend_values)
KERNEL(quantize_x256)
KERNEL(quantize_x32)
#define MATMUL_IN_LIST(name, FORMAT, RUN) \
    KERNEL(matmul_##name##_r1) KERNEL(matmul_##name##_r2) KERNEL(matmul_##name##_r4) KERNEL(matmul_##name##_r8)
MATMUL_FORMATS(MATMUL_IN_LIST)
#undef MATMUL_IN_LIST
