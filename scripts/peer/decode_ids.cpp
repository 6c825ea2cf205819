// decode_ids: llama.cpp's side of `drafthorse-eval compare`: decodes given token ids, one at a time.
//
//   decode_ids -m MODEL -i IDS [-p PASSES] [-t THREADS] [--repack] [--no-mmap]
//
// IDS is a file of ids separated by white space or commas. The same ids are decoded PASSES times in one
// process, the KV cache emptied in between: pass 1 is as cold as the machine was, the others warm.
// Nothing is sampled. Weights are not repacked unless --repack asks for it: a repacked copy lies in
// anonymous memory, and a process limited to less than the model is killed for it.
// One JSON object per pass on stdout; exit code 1 when something fails, 2 for bad arguments.
#define PROGRAM "decode_ids"
#include "ids.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

struct Options {
    std::string model, ids;
    int passes = 2, threads = 2;
    bool repack = false, mmap = true;
};

static Options parse(int argc, char ** argv) {
    Options options;
    for (int i = 1; i < argc; i++) {
        const std::string flag = argv[i];
        const auto value = [&] {
            if (++i >= argc) fail(2, flag + " needs a value");
            return argv[i];
        };
        if (flag == "-m") options.model = value();
        else if (flag == "-i") options.ids = value();
        else if (flag == "-p") options.passes = number("-p", value(), 1000);
        else if (flag == "-t") options.threads = number("-t", value(), 1024);
        else if (flag == "--repack") options.repack = true;
        else if (flag == "--no-mmap") options.mmap = false;
        else fail(2, "unknown argument " + flag);
    }
    if (options.model.empty() || options.ids.empty()) fail(2, "-m MODEL and -i IDS are needed");
    return options;
}

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Bytes this process has fetched from block devices so far.
static long long device_bytes() {
    long long bytes = 0;
    if (FILE * file = fopen("/proc/self/io", "r")) {
        char line[128];
        while (fgets(line, sizeof line, file)) sscanf(line, "read_bytes: %lld", &bytes);
        fclose(file);
    }
    return bytes;
}

static rusage usage() {
    rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use;
}

static llama_context * open_context(llama_model * model, size_t ids, int threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t) ((ids + 255) / 256 * 256);
    params.n_batch = params.n_ubatch = 32; // one token a pass: small work buffers
    params.n_threads = params.n_threads_batch = threads;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) fail(1, "no context");
    return context;
}

// The likeliest token after the last id; the lowest of equals.
static int likeliest(llama_context * context, int vocab) {
    const float * logits = llama_get_logits_ith(context, -1);
    if (!logits) fail(1, "no logits");
    return (int) (std::max_element(logits, logits + vocab) - logits);
}

static void run_pass(llama_context * context, std::vector<llama_token> ids, int vocab, int pass, double load_s) {
    llama_memory_clear(llama_get_memory(context), true);
    const long long bytes = device_bytes();
    const long faults = usage().ru_majflt;
    const double start = now();
    for (llama_token & id : ids) {
        if (llama_decode(context, llama_batch_get_one(&id, 1)) != 0) fail(1, "decoding failed");
        llama_synchronize(context);
    }
    const double seconds = now() - start;
    printf("{\"pass\":%d,\"tokens\":%zu,\"seconds\":%.6f,\"tok_s\":%.6f,\"read_bytes\":%lld,\"majflt\":%ld,"
           "\"peak_rss_bytes\":%lld,\"load_s\":%.3f,\"ids_hash\":\"%016llx\",\"next\":%d}\n",
           pass, ids.size(), seconds, ids.size() / seconds, device_bytes() - bytes, usage().ru_majflt - faults,
           usage().ru_maxrss * 1024ll, load_s, (unsigned long long) ids_hash(ids), likeliest(context, vocab));
    fflush(stdout);
}

int main(int argc, char ** argv) {
    const Options options = parse(argc, argv);
    const std::vector<llama_token> ids = read_ids(options.ids);
    quiet_log();
    llama_backend_init();
    const double start = now();
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = options.repack;
    params.load_mode = options.mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(options.model.c_str(), params);
    if (!model) fail(1, "cannot load " + options.model);
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    check_ids(ids, vocab);
    llama_context * context = open_context(model, ids.size(), options.threads);
    const double load_s = now() - start;
    for (int pass = 1; pass <= options.passes; pass++) run_pass(context, ids, vocab, pass, load_s);
    llama_free(context);
    llama_model_free(model);
}
