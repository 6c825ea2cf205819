// decode_ids: llama.cpp's side of `drafthorse-eval compare`: decodes given token ids, one at a time.
//
//   decode_ids -m MODEL -i IDS [-p PASSES] [-t THREADS] [--repack] [--no-mmap]
//
// IDS is a file of ids separated by white space or commas. The same ids are decoded PASSES times in one
// process, the KV cache emptied in between: pass 1 is as cold as the machine was, the others warm.
// Nothing is sampled. Weights are not repacked unless --repack asks for it: a repacked copy lies in
// anonymous memory, and a process limited to less than the model is killed for it.
// One JSON object per pass on stdout; exit code 1 when something fails, 2 for bad arguments.
#include "llama.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

struct Options {
    std::string model, ids;
    int passes = 2, threads = 2;
    bool repack = false, mmap = true;
};

[[noreturn]] static void fail(int code, const std::string & message) {
    fprintf(stderr, "decode_ids: %s\n", message.c_str());
    exit(code);
}

static int number(const char * flag, const char * text, long max) {
    char * end = nullptr;
    const long value = strtol(text, &end, 10);
    if (*text == 0 || *end != 0 || value < 1 || value > max) {
        fail(2, std::string(flag) + ": expected a number from 1 to " + std::to_string(max));
    }
    return (int) value;
}

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

static std::vector<llama_token> read_ids(const std::string & path) {
    FILE * file = fopen(path.c_str(), "r");
    if (!file) fail(2, "cannot open " + path);
    std::string text;
    char chunk[4096];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, file)) > 0;) text.append(chunk, n);
    fclose(file);
    for (char & c : text) if (c == ',') c = ' ';
    std::vector<llama_token> ids;
    for (const char * at = text.c_str();;) {
        at += strspn(at, " \t\r\n");
        if (*at == 0) break;
        char * end = nullptr;
        const long value = strtol(at, &end, 10);
        if (end == at || value < 0 || value > INT32_MAX) fail(2, path + ": not a token id");
        ids.push_back((llama_token) value);
        at = end;
    }
    if (ids.empty()) fail(2, path + ": no token ids");
    return ids;
}

// FNV-1a, 64 bits, over the ids' little-endian bytes, as drafthorse prints it.
static uint64_t ids_hash(const std::vector<llama_token> & ids) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const llama_token id : ids) {
        for (int byte = 0; byte < 4; byte++) hash = (hash ^ ((uint32_t) id >> 8 * byte & 255)) * 0x100000001b3ull;
    }
    return hash;
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
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    const double start = now();
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = options.repack;
    params.load_mode = options.mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(options.model.c_str(), params);
    if (!model) fail(1, "cannot load " + options.model);
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (const llama_token id : ids) if (id >= vocab) fail(2, "id " + std::to_string(id) + " is outside the vocabulary");
    llama_context * context = open_context(model, ids.size(), options.threads);
    const double load_s = now() - start;
    for (int pass = 1; pass <= options.passes; pass++) run_pass(context, ids, vocab, pass, load_s);
    llama_free(context);
    llama_model_free(model);
}
