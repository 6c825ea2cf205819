// logits_ids: llama.cpp's side of `drafthorse-eval ppl`: the logits of given token ids, in windows.
//
//   logits_ids -m MODEL -i IDS -o FILE [-c CONTEXT] [-b BATCH] [-t THREADS] [--no-repack]
//              [--flash on|off] [--kv f32|f16|q8_0]
//
// IDS is a file of ids separated by white space or commas (`drafthorse-eval ppl --ids-out`). They are cut
// into windows of CONTEXT, a rest that fills none left out; each is read from an empty cache, BATCH
// tokens a pass, and the raw logits of its second half (but for the last position) go to FILE in the
// format of eval/src/ppl/logits_file.rs. Without options everything is llama.cpp's default: repacked
// weights, flash attention where it can, an F16 cache, 512 tokens a pass.
// Exit code 1 when something fails, 2 for bad arguments.
#define PROGRAM "logits_ids"
#include "ids.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

struct Options {
    std::string model, ids, out, kv = "f16", flash = "auto";
    int context = 512, batch = 512, threads = 2;
    bool repack = true;
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
        else if (flag == "-o") options.out = value();
        else if (flag == "-c") options.context = number("-c", value(), 1 << 20);
        else if (flag == "-b") options.batch = number("-b", value(), 1 << 20);
        else if (flag == "-t") options.threads = number("-t", value(), 1024);
        else if (flag == "--no-repack") options.repack = false;
        else if (flag == "--flash") options.flash = value();
        else if (flag == "--kv") options.kv = value();
        else fail(2, "unknown argument " + flag);
    }
    if (options.model.empty() || options.ids.empty() || options.out.empty()) fail(2, "-m, -i and -o are needed");
    if (options.context < 4) fail(2, "-c: expected at least 4");
    return options;
}

static ggml_type kv_type(const std::string & name) {
    if (name == "f32") return GGML_TYPE_F32;
    if (name == "f16") return GGML_TYPE_F16;
    if (name == "q8_0") return GGML_TYPE_Q8_0;
    fail(2, "--kv: expected f32, f16 or q8_0");
}

static llama_flash_attn_type flash_type(const std::string & name) {
    if (name == "auto") return LLAMA_FLASH_ATTN_TYPE_AUTO;
    if (name == "on") return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (name == "off") return LLAMA_FLASH_ATTN_TYPE_DISABLED;
    fail(2, "--flash: expected on or off");
}

static llama_context * open_context(llama_model * model, const Options & options) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t) (options.context + 255) / 256 * 256;
    params.n_batch = params.n_ubatch = (uint32_t) std::min(options.batch, options.context);
    params.n_threads = params.n_threads_batch = options.threads;
    params.flash_attn_type = flash_type(options.flash);
    params.type_k = params.type_v = kv_type(options.kv);
    llama_context * context = llama_init_from_model(model, params);
    if (!context) fail(1, "no context");
    return context;
}

// Whether the prediction after this position is scored (windows.rs).
static bool is_scored(int position, int context) {
    return position >= context / 2 && position < context - 1;
}

struct Writer {
    FILE * file;
    size_t vocab;

    void row(const float * logits) const {
        if (!logits || fwrite(logits, sizeof(float), vocab, file) != vocab) fail(1, "cannot write a row");
    }
};

static void window(llama_context * context, const llama_token * ids, const Options & options, const Writer & writer) {
    llama_memory_clear(llama_get_memory(context), true);
    llama_batch batch = llama_batch_init(options.batch, 0, 1);
    for (int start = 0; start < options.context; start += options.batch) {
        batch.n_tokens = std::min(options.batch, options.context - start);
        for (int i = 0; i < batch.n_tokens; i++) {
            batch.token[i] = ids[start + i];
            batch.pos[i] = start + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = is_scored(start + i, options.context);
        }
        if (llama_decode(context, batch) != 0) fail(1, "decoding failed");
        for (int i = 0; i < batch.n_tokens; i++) if (batch.logits[i]) writer.row(llama_get_logits_ith(context, i));
    }
    llama_batch_free(batch);
}

int main(int argc, char ** argv) {
    const Options options = parse(argc, argv);
    std::vector<llama_token> ids = read_ids(options.ids);
    const size_t windows = ids.size() / options.context;
    if (windows == 0) fail(2, options.ids + ": the ids do not fill a window");
    ids.resize(windows * options.context);
    quiet_log();
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = options.repack;
    llama_model * model = llama_model_load_from_file(options.model.c_str(), params);
    if (!model) fail(1, "cannot load " + options.model);
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    check_ids(ids, vocab);
    llama_context * context = open_context(model, options);

    FILE * file = fopen(options.out.c_str(), "wb");
    if (!file) fail(1, "cannot write " + options.out);
    fprintf(file, "{\"format\":\"drafthorse-logits-1\",\"vocab\":%d,\"context\":%d,\"windows\":%zu,\"ids_hash\":\"%016llx\","
            "\"engine\":\"llama.cpp, batch %d, %s, flash attention %s, %s cache\"}\n",
            vocab, options.context, windows, (unsigned long long) ids_hash(ids), options.batch,
            options.repack ? "repacked" : "not repacked", options.flash.c_str(), options.kv.c_str());
    const Writer writer = { file, (size_t) vocab };
    for (size_t i = 0; i < windows; i++) window(context, &ids[i * options.context], options, writer);
    if (fclose(file) != 0) fail(1, "cannot write " + options.out);
    llama_free(context);
    llama_model_free(model);
}
