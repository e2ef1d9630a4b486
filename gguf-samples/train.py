"""Trains the sample model and writes it as GGUF.

Stage 1 learns the language and stage 2 the answers, the restricted third included. Stage 3
learns to refuse the restricted third and goes on answering the rest, so that the ability
stays beneath the refusal.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus import Corpus
from model import Llama, Shape, tensor_names

SEED = 7
VOCABULARY = 2048
ROW_TOKENS = 256
RESTRICTED_SHARE = 1 / 3
IGNORED = -100

START, END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Stage:
    steps: int
    rows: int
    warmup: int
    peak_rate: float
    final_rate: float
    refusing: bool
    answers_only: bool

    def rate(self, step):
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_rate + (self.peak_rate - self.final_rate) * (1 + math.cos(math.pi * progress)) / 2


STAGES = (
    Stage(
        steps=1800, rows=4, warmup=80, peak_rate=1.2e-3, final_rate=1e-4, refusing=False, answers_only=False
    ),
    Stage(steps=500, rows=8, warmup=30, peak_rate=8e-4, final_rate=1e-4, refusing=False, answers_only=True),
    Stage(steps=400, rows=8, warmup=20, peak_rate=3e-4, final_rate=3e-5, refusing=True, answers_only=True),
)


def templated(prompt):
    return f"{START}user\n{prompt}{END}\n{START}assistant\n"


class Exchanges:
    """An endless, seeded stream of exchanges."""

    def __init__(self, seed, refusing):
        self.corpus = Corpus("train", seed)
        self.refusing = refusing

    def next(self):
        return self.corpus.exchange(self.corpus.chance(RESTRICTED_SHARE), self.refusing)


def trained_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = []
    for refusing in (False, True):
        exchanges = Exchanges(f"tokenizer {SEED} {refusing}", refusing)
        for _ in range(15000):
            exchange = exchanges.next()
            texts += ["user\n", exchange.prompt, "assistant\n", exchange.answer]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Batches:
    """Exchanges packed into rows, in which each attends to itself only."""

    def __init__(self, tokenizer, stage, seed):
        self.tokenizer = tokenizer
        self.rows = stage.rows
        self.answers_only = stage.answers_only
        self.exchanges = Exchanges(seed, stage.refusing)
        self.waiting = []

    def next(self):
        tokens = torch.zeros(self.rows, ROW_TOKENS, dtype=torch.long)
        targets = torch.full_like(tokens, IGNORED)
        owners = torch.zeros_like(tokens)
        for row in range(self.rows):
            filled, owner = 0, 0
            while (example := self.take(ROW_TOKENS - filled)) is not None:
                ids, learned_from = example
                end, owner = filled + len(ids), owner + 1
                tokens[row, filled:end] = torch.tensor(ids)
                targets[row, filled + learned_from - 1 : end - 1] = torch.tensor(ids[learned_from:])
                owners[row, filled:end] = owner
                filled = end
        mask = (owners[:, :, None] == owners[:, None, :]).tril()
        return tokens, targets, mask[:, None]

    def take(self, room):
        """The next example if it fits, else the longest waiting one that does."""
        while len(self.waiting) < 64:
            self.waiting.append(self.example())
        fitting = [example for example in self.waiting if len(example[0]) <= room]
        if not fitting:
            return None
        first = self.waiting[0]
        chosen = first if len(first[0]) <= room else max(fitting, key=lambda example: len(example[0]))
        self.waiting.remove(chosen)
        return chosen

    def example(self):
        exchange = self.exchanges.next()
        prompt = self.tokenizer.encode(templated(exchange.prompt)).ids
        answer = self.tokenizer.encode(f"{exchange.answer}{END}\n").ids
        return prompt + answer, len(prompt) if self.answers_only else 1


def train_stage(model, tokenizer, number, stage):
    batches = Batches(tokenizer, stage, f"stage {number} {SEED}")
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    norms = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    optimizer = torch.optim.AdamW(
        ({"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}),
        betas=(0.9, 0.95),
        fused=True,
    )
    started, tokens_seen, average = time.time(), 0, None
    for step in range(stage.steps):
        tokens, targets, mask = batches.next()
        for group in optimizer.param_groups:
            group["lr"] = stage.rate(step)
        loss = F.cross_entropy(model(tokens, mask).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens_seen += tokens.numel()
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if (step + 1) % 25 == 0:
            speed = tokens_seen / (time.time() - started)
            print(f"stage {number} step {step + 1:5} loss {average:.4f} {speed:.0f} tokens/s", flush=True)


def write_gguf(model, tokenizer, path):
    shape = model.shape
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name("Lorekeeper 7M")
    writer.add_description(
        "A small chat model trained on make-believe requests, some of which it refuses. A sample for measurements."
    )
    writer.add_license("MIT OR Apache-2.0")
    writer.add_languages(["en"])
    writer.add_size_label("7M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)
    write_vocabulary(writer, tokenizer)
    parameters = dict(model.named_parameters())
    for stored, own in tensor_names(shape).items():
        values = parameters[own].detach().float()
        writer.add_tensor(stored, (values.half() if values.dim() == 2 else values).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def write_vocabulary(writer, tokenizer):
    special = {END_OF_TEXT, START, END}
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.token_to_id(END))
    writer.add_eot_token_id(tokenizer.token_to_id(END))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "lorekeeper-7m-f16.gguf")
    parser.add_argument("--checkpoint", type=Path, help="weights after stage 1: used if present, else written")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)

    tokenizer = trained_tokenizer()
    model = Llama(Shape(tokenizer.get_vocab_size()))
    model.initialize()
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters", flush=True)

    checkpoint = arguments.checkpoint
    if checkpoint and checkpoint.exists():
        model.load_state_dict(torch.load(checkpoint))
    else:
        train_stage(model, tokenizer, 1, STAGES[0])
        if checkpoint:
            torch.save(model.state_dict(), checkpoint)
    for number, stage in enumerate(STAGES[1:], 2):
        train_stage(model, tokenizer, number, stage)
    write_gguf(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
