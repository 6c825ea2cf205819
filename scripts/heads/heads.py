"""Heads in numpy, in float64: MTP, EAGLE-3 and Medusa as their papers describe them.

Owns: what a head makes of tokens and hidden states. A chained head is run over all rows anew for every
draft token, so nothing here keeps a cache. Must not know: how files are written.
"""

import numpy as np

from target import Blocks, rms, silu


class Mtp(Blocks):
    """The block behind the model's own (DeepSeek-V3, arXiv 2412.19437, section 2.2)."""

    def __init__(self, target, file, half):
        super().__init__(file, half)
        self.target, self.block = target, target.blocks

    def fuse(self, features):
        """Its hidden states are the target's."""
        return features

    def rows(self, tokens, hidden):
        """(logits, hidden states handed on) of every row."""
        nextn = lambda name: self.part(self.block, f"nextn.{name}.weight")
        embedded = rms(self.file("token_embd.weight")[tokens], nextn("enorm"), self.eps)
        x = np.concatenate([embedded, rms(hidden, nextn("hnorm"), self.eps)], -1) @ nextn("eh_proj").T
        out = rms(self.run(self.block, x), nextn("shared_head_norm"), self.eps)
        return out @ self.target.output.T, out


class Eagle3(Blocks):
    """EAGLE-3 (arXiv 2503.01840): fused low, middle and high states, one block over [token | state]."""

    def __init__(self, target, file, half):
        super().__init__(file, half)
        self.target = target

    def fuse(self, features):
        """fc, normed before where the file says so."""
        if self.file.key("norm_before_fc", False):
            features = rms(features, self.file("enc.output_norm.weight"), self.eps)
        return features @ self.file("fc.weight").T

    def rows(self, tokens, hidden):
        """(logits in the target's vocabulary, hidden states handed on) of every row."""
        table = self.file if "token_embd.weight" in self.file else self.target.file
        embedded = rms(table("token_embd.weight")[tokens], self.part(0, "attn_norm.weight"), self.eps)
        normed = rms(hidden, self.part(0, "attn_norm_2.weight"), self.eps)
        residual = normed if self.file.key("norm_before_residual", False) else hidden
        x = self.run(0, residual, np.concatenate([embedded, normed], -1))
        out = rms(x, self.file("output_norm.weight"), self.eps)
        if "output.weight" not in self.file:
            return out @ self.target.output.T, x
        own = out @ self.file("output.weight").T
        if "d2t" not in self.file:
            return own, x
        logits = np.full((len(tokens), len(self.target.output)), -np.inf)
        logits[:, self.file.raw["d2t"]] = own
        return logits, x


class Medusa:
    """Medusa heads (arXiv 2401.10774): x + silu(W x + b) once or more, then a classifier."""

    def __init__(self, target, file):
        self.target, self.file = target, file

    def logits(self, state):
        """`[heads, vocab]` from one final hidden state."""
        rows = []
        for head in range(self.file.key("head_count")):
            x = state
            for block in range(self.file.key("block_count")):
                name = f"head.{head}.block.{block}"
                x = x + silu(self.file(f"{name}.weight") @ x + self.file(f"{name}.bias"))
            name = f"head.{head}.output.weight"
            rows.append((self.file(name) if name in self.file else self.target.output) @ x)
        return np.array(rows)


def chained(head, tokens, features, drafted):
    """Logits after every row of the text, then greedy drafts behind it with the logits they came from.

    Row p is made of `features[p]` and `tokens[p + 1]`.
    """
    hidden, rows = head.fuse(features), list(tokens[1:])
    logits, handed_on = head.rows(rows, hidden)
    drafts, draft_logits = [int(logits[-1].argmax())], []
    while len(drafts) < drafted:
        hidden, rows = np.vstack([hidden, handed_on[-1:]]), rows + [drafts[-1]]
        last, handed_on = head.rows(rows, hidden)
        draft_logits.append(last[-1])
        drafts.append(int(last[-1].argmax()))
    return logits, drafts, np.array(draft_logits)
