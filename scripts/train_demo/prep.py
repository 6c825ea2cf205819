"""Owns the data: the train/held-out split, the tokenizer, and the token files.

Reads the corpus (`*.txt.gz`, documents end with a line `<|endoftext|>`), writes
`tokenizer.json`, `<domain>.train.npy`, `<domain>.heldout.json` and `split.json`.
Everything is deterministic: the same corpus gives the same bytes.
"""

import argparse
import gzip
import json
import os
import re

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|endoftext|>"
VOCAB = 4096

# The pattern of llama.cpp's `tokenizer.ggml.pre = qwen2`. It must stay this one,
# or the ids of llama.cpp and of our runtime part from the ids trained on.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Domain -> share of the training sequences. The 12.5 MB of tales are capped, the
# small domains are repeated (code about three times over a run), so that no
# domain is too rare for experts to specialise on it.
SHARES = {
    "stories_tales": 0.24,
    "stories_novels": 0.13,
    "science_books": 0.13,
    "math_gsm8k_train": 0.15,
    "code_p3_puzzles": 0.09,
    "shell_tldr": 0.12,
    "tech_peps": 0.14,
}

# Books are a handful of huge documents, so one in a hundred of them cannot be
# held out. They are cut into pieces of this size at paragraph breaks and one
# piece in a hundred is held out.
PIECE_CHARS = 6000
BOOKS = ("stories_tales", "stories_novels", "science_books")


def read_documents(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as f:
        text = f.read()
    docs = re.split(r"^<\|endoftext\|>\r?\n?", text, flags=re.M)
    return [d.rstrip("\r\n") for d in docs if d.strip()]


def cut_pieces(doc):
    pieces, start = [], 0
    while len(doc) - start > PIECE_CHARS * 3 // 2:
        cut = doc.find("\n\n", start + PIECE_CHARS)
        if cut < 0:
            break
        pieces.append(doc[start : cut + 2])
        start = cut + 2
    pieces.append(doc[start:])
    return pieces


def split(domain, docs):
    """Returns (training runs, held-out texts). A run is (text, ends_document)."""
    train, held, n = [], [], 0
    for doc in docs:
        pieces = cut_pieces(doc) if domain in BOOKS else [doc]
        run = ""
        for piece in pieces:
            # Index 50 of each hundred, not 0: the first piece of a book is its
            # title page and table of contents.
            if n % 100 == 50:
                held.append(piece)
                if run:
                    train.append((run, False))
                run = ""
            else:
                run += piece
            n += 1
        if run:
            train.append((run, True))
    return train, held, n


def train_tokenizer(texts):
    tok = Tokenizer(models.BPE(byte_fallback=False))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    assert tok.get_vocab_size() == VOCAB and tok.token_to_id(EOS) == 0
    return tok


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--corpus", default="/work/shared/data/corpus")
    ap.add_argument("--out", default="/work/tmp/train/data")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)

    parts = {}
    for domain in SHARES:
        docs = read_documents(os.path.join(args.corpus, domain + ".txt.gz"))
        parts[domain] = split(domain, docs)

    # The sample follows the shares, so merges are spent where training text is.
    sample = []
    for domain, (train, _, _) in parts.items():
        budget = int(12_000_000 * SHARES[domain])
        for text, _ in train:
            if budget <= 0:
                break
            sample.append(text[:budget])
            budget -= len(text)
    tok = train_tokenizer(sample)
    tok.save(os.path.join(args.out, "tokenizer.json"))

    report = {}
    for domain, (train, held, units) in parts.items():
        ids = []
        for enc, (_, ends) in zip(tok.encode_batch([t for t, _ in train]), train):
            ids.extend(enc.ids)
            if ends:
                ids.append(0)
        ids = np.asarray(ids, dtype=np.uint16)
        np.save(os.path.join(args.out, domain + ".train.npy"), ids)
        held_ids = [e.ids for e in tok.encode_batch(held)]
        with open(os.path.join(args.out, domain + ".heldout.json"), "w") as f:
            json.dump([{"text": t, "ids": i} for t, i in zip(held, held_ids)], f)
        report[domain] = {
            "units": units,
            "unit": "pieces" if domain in BOOKS else "documents",
            "heldout_units": len(held),
            "train_tokens": len(ids),
            "heldout_tokens": sum(map(len, held_ids)),
            "train_chars_per_token": round(sum(len(t) for t, _ in train) / len(ids), 3),
            "share": SHARES[domain],
        }
    with open(os.path.join(args.out, "split.json"), "w") as f:
        json.dump(report, f, indent=1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
