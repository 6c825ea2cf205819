// greedy: llama.cpp as a second opinion on tokens and logits.
// usage: greedy -m MODEL [--tokens 1,2,3 | -p TEXT [--no-special]] [-n N] [--logits] [--tokenize] [-t 2] [--flash 0|1] [--kv f32|f16] [--split]
// prints one JSON object: {"tokens":[...],"generated":[...],"logits":[[...]...]}   (logits: every given position)
// --split feeds one token at a time instead of one batch. No repacking, KV in f32 and no flash attention unless asked.
#include "llama.h"
#include "ggml.h"
#include "ggml-backend.h"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
struct Args { std::string model, text, tokens; int n = 0, threads = 2; bool has_text = false, special = true, logits = false, tokenize = false, flash = false, f16 = false, split = false; };
static Args parse(int argc, char ** argv) {
  Args a;
  for (int i = 1; i < argc; i++) { std::string s = argv[i]; auto next = [&] { if (++i >= argc) { fprintf(stderr, "missing value\n"); exit(2); } return std::string(argv[i]); };
    if (s == "-m") a.model = next(); else if (s == "-p") { a.text = next(); a.has_text = true; } else if (s == "--tokens") a.tokens = next();
    else if (s == "-n") a.n = stoi(next()); else if (s == "-t") a.threads = stoi(next()); else if (s == "--no-special") a.special = false;
    else if (s == "--logits") a.logits = true; else if (s == "--tokenize") a.tokenize = true; else if (s == "--split") a.split = true;
    else if (s == "--flash") a.flash = next() == "1"; else if (s == "--kv") a.f16 = next() == "f16"; else { fprintf(stderr, "bad %s\n", s.c_str()); exit(2); } }
  return a;
}
static std::vector<llama_token> tokens_of(const Args & a, const llama_vocab * v) {
  std::vector<llama_token> out;
  if (a.has_text) {
    std::string text = a.text;
    if (text == "-") { text.clear(); int c; while ((c = getchar()) != EOF) text += (char) c; }
    out.resize(text.size() + 16);
    int n = llama_tokenize(v, text.data(), (int) text.size(), out.data(), (int) out.size(), a.special, true);
    if (n < 0) { fprintf(stderr, "tokenize failed\n"); exit(1); }
    out.resize(n); return out;
  }
  for (size_t i = 0; i < a.tokens.size();) { size_t e = a.tokens.find(',', i); if (e == std::string::npos) e = a.tokens.size(); out.push_back(atoi(a.tokens.substr(i, e - i).c_str())); i = e + 1; }
  return out;
}
static void print_ids(const char * name, const std::vector<llama_token> & v) { printf("\"%s\":[", name); for (size_t i = 0; i < v.size(); i++) printf("%s%d", i ? "," : "", v[i]); printf("]"); }
static void print_row(const float * row, int n, bool first) { printf("%s[", first ? "" : ","); for (int j = 0; j < n; j++) printf("%s%.9g", j ? "," : "", row[j]); printf("]"); }
static void decode(llama_context * c, const llama_token * t, int n, int pos, bool all) {
  llama_batch b = llama_batch_init(n, 0, 1); b.n_tokens = n;
  for (int i = 0; i < n; i++) { b.token[i] = t[i]; b.pos[i] = pos + i; b.n_seq_id[i] = 1; b.seq_id[i][0] = 0; b.logits[i] = all || i == n - 1; }
  if (llama_decode(c, b)) { fprintf(stderr, "decode failed\n"); exit(1); }
  llama_batch_free(b);
}
int main(int argc, char ** argv) {
  Args a = parse(argc, argv);
  llama_log_set([](ggml_log_level l, const char * s, void *) { if (l >= GGML_LOG_LEVEL_ERROR) fputs(s, stderr); }, nullptr);
  llama_backend_init();
  auto mp = llama_model_default_params(); mp.use_extra_bufts = false; mp.vocab_only = a.tokenize;
  auto * m = llama_model_load_from_file(a.model.c_str(), mp); if (!m) { puts("{\"error\":\"load\"}"); return 1; }
  auto * v = llama_model_get_vocab(m); auto t = tokens_of(a, v);
  printf("{"); print_ids("tokens", t);
  if (a.tokenize) { puts("}"); return 0; }
  auto cp = llama_context_default_params(); cp.n_ctx = std::max(64, (int) t.size() + a.n + 1); cp.n_batch = cp.n_ubatch = std::max<int>(32, t.size());
  cp.n_threads = cp.n_threads_batch = a.threads; cp.type_k = cp.type_v = a.f16 ? GGML_TYPE_F16 : GGML_TYPE_F32;
  cp.flash_attn_type = a.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  auto * c = llama_init_from_model(m, cp); if (!c) { puts(",\"error\":\"context\"}"); return 1; }
  int V = llama_vocab_n_tokens(v), pos = 0;
  if (a.logits) printf(",\"logits\":[");
  int step = a.split ? 1 : (int) t.size();
  for (size_t i = 0; i < t.size(); i += step) { decode(c, t.data() + i, step, pos, a.logits); pos += step;
    if (a.logits) for (int j = 0; j < step; j++) print_row(llama_get_logits_ith(c, j), V, i + j == 0); }
  if (a.logits) printf("]");
  std::vector<llama_token> gen;
  for (int i = 0; i < a.n; i++) { const float * row = llama_get_logits_ith(c, -1); gen.push_back(std::max_element(row, row + V) - row); if (i + 1 < a.n) decode(c, &gen.back(), 1, pos++, false); }
  printf(","); print_ids("generated", gen); puts("}");
  llama_free(c); llama_model_free(m);
}
