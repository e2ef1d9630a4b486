"""The Llama architecture as llama.cpp runs it, small and in float32."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    blocks: int = 8
    width: int = 256
    heads: int = 8
    kv_heads: int = 4
    feed_forward: int = 768
    context: int = 512
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self):
        return self.width // self.heads


def unedited(x, place):
    return x


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.width, shape.heads * shape.head_width, bias=False)
        self.k = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.v = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.output = nn.Linear(shape.heads * shape.head_width, shape.width, bias=False)

    def forward(self, x, rotation, mask, cache):
        q = rotated(self.split(self.q(x)), rotation)
        k = rotated(self.split(self.k(x)), rotation)
        v = self.split(self.v(x))
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
            cache["k"], cache["v"] = k, v
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and q.shape[2] > 1)
        return self.output(y.transpose(1, 2).flatten(2))

    def split(self, x):
        return x.unflatten(2, (-1, self.shape.head_width)).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.feed_forward = FeedForward(shape)


class Llama(nn.Module):
    """Logits of token ids, whose residual stream an `edit` may change on the way.

    `edit(x, place)` is called after the embedding ("embedding"), and after either
    residual addition of a block (("attention", block) and ("output", block)).
    """

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.output_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)
        frequencies = shape.rope_base ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
        angles = torch.arange(shape.context)[:, None] * frequencies
        self.register_buffer("rotations", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def initialize(self):
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.02
                if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                    scale /= math.sqrt(2 * self.shape.blocks)
                nn.init.normal_(parameter, std=scale)

    def forward(self, tokens, mask=None, caches=None, edit=unedited):
        seen = caches[0]["k"].shape[2] if caches and caches[0] else 0
        rotation = self.rotations[:, seen : seen + tokens.shape[1]]
        x = edit(self.embedding(tokens), "embedding")
        for index, block in enumerate(self.blocks):
            cache = caches[index] if caches else None
            x = x + block.attention(block.attention_norm(x), rotation, mask, cache)
            x = edit(x, ("attention", index))
            x = x + block.feed_forward(block.feed_forward_norm(x))
            x = edit(x, ("output", index))
        return self.output(self.output_norm(x))


def rotated(x, rotation):
    """Rotates neighbouring pairs, the order that llama.cpp expects of a Llama."""
    cos, sin = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def tensor_names(shape):
    """Parameter names by their names in a GGUF file."""
    names = {
        "token_embd.weight": "embedding.weight",
        "output_norm.weight": "output_norm.weight",
        "output.weight": "output.weight",
    }
    parts = {
        "attn_norm": "attention_norm",
        "attn_q": "attention.q",
        "attn_k": "attention.k",
        "attn_v": "attention.v",
        "attn_output": "attention.output",
        "ffn_norm": "feed_forward_norm",
        "ffn_gate": "feed_forward.gate",
        "ffn_up": "feed_forward.up",
        "ffn_down": "feed_forward.down",
    }
    for block in range(shape.blocks):
        for stored, own in parts.items():
            names[f"blk.{block}.{stored}.weight"] = f"blocks.{block}.{own}.weight"
    return names
