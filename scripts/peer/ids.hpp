// What the programs of this folder share: numbers of the command line, id lists and their fingerprint.
// Knows nothing of llama.cpp but the type of a token.
#pragma once

#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

[[noreturn]] inline void fail(int code, const std::string & message) {
    fprintf(stderr, "%s: %s\n", PROGRAM, message.c_str());
    exit(code);
}

inline int number(const char * flag, const char * text, long max) {
    char * end = nullptr;
    const long value = strtol(text, &end, 10);
    if (*text == 0 || *end != 0 || value < 1 || value > max) {
        fail(2, std::string(flag) + ": expected a number from 1 to " + std::to_string(max));
    }
    return (int) value;
}

// Ids separated by white space or commas.
inline std::vector<llama_token> read_ids(const std::string & path) {
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

inline void check_ids(const std::vector<llama_token> & ids, int vocab) {
    for (const llama_token id : ids) if (id >= vocab) fail(2, "id " + std::to_string(id) + " is outside the vocabulary");
}

// FNV-1a, 64 bits, over the ids' little-endian bytes, as drafthorse prints it.
inline uint64_t ids_hash(const std::vector<llama_token> & ids) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const llama_token id : ids) {
        for (int byte = 0; byte < 4; byte++) hash = (hash ^ ((uint32_t) id >> 8 * byte & 255)) * 0x100000001b3ull;
    }
    return hash;
}

// Errors of the library only.
inline void quiet_log() {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);
}
