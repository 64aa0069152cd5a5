#!/usr/bin/env python3
"""Are our GGUF files what the gguf package, Hugging Face's tokenizers and llama.cpp take them for?

    check_gguf.py [FOLDER...] [--random] [--text FILE.jsonl] [--llama-cpp DIR]

FOLDER is a GPT2LMHeadModel or a LlamaForCausalLM with a tokenizer.json. Each is imported and exported as F32, F16 and Q8_0; the gguf
package's reader must find the folder's numbers, tensors, tokens and chat template, and the folder that we make of our own file must have
the same numbers and tensors, and a tokenizer that encodes and decodes the text alike. With llama-cpp-python, tokens, logits and greedy continuations of the F32 file are compared, too. --random makes
small folders of random weights in the variants that the two networks have.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import gguf
import numpy
import torch
import transformers
from gguf.quants import quantize
from safetensors.numpy import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from exported import ROOT, run
from opened import Difference

FIXTURES = ROOT / "crates" / "offshoot-zoo" / "tests" / "fixtures" / "gguf"
AWKWARD = [
    "", " ", "  ", "\n", "\n\n  \n", " a", "  a", "a ", "Hello world", " Hello  world ", "It's we'll I'D they're",
    "x = 3.14159e-10; y[12345] += 0x7f\t# 100%", "naïve café Größe œuvre", "Привет, мир!", "日本語の文章です。", "👩‍👩‍👧 🚀🚀",
    "<s>not special</s>", "a\u0301\u200d\u00a0b", "١٢٣ ½ Ⅷ", "\t\t\tif (x) {\r\n\r\n}", "........!!!!?????", "▁already▁marked",
]

# What transformers calls the parts of a block.
LLAMA = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_down": "mlp.down_proj",
}
GPT2 = {
    "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def theirs(name, tensors, is_gpt2):
    """transformers' tensor for a name of GGUF, in Hugging Face's order of rows, as (out, in)."""
    words = name.split(".")
    if words[0] == "blk":
        part = (GPT2 if is_gpt2 else LLAMA)[words[2]]
        key = f"{'transformer.h' if is_gpt2 else 'model.layers'}.{words[1]}.{part}.{words[3]}"
    else:
        names = {
            "token_embd": ("transformer.wte", "model.embed_tokens"), "position_embd": ("transformer.wpe", ""),
            "output_norm": ("transformer.ln_f", "model.norm"), "output": ("lm_head", "lm_head"),
        }
        key = f"{names[words[0]][0 if is_gpt2 else 1]}.{words[1]}"
    value = tensors[key].astype(numpy.float32)
    return value.T if is_gpt2 and words[0] == "blk" and value.ndim == 2 else value


def in_pairs(value, heads):
    """Rows of queries or keys as the format's converter puts them for llama."""
    shape = value.shape
    return value.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def equal(what, ours, expected):
    if ours != expected:
        raise Difference(f"{what} is {str(ours)[:200]}, not {str(expected)[:200]}")


def field(reader, key):
    found = reader.get_field(key)
    return None if found is None else found.contents()


def check_numbers(reader, config):
    get = config.get
    name = get("model_type")
    equal("general.architecture", field(reader, "general.architecture"), name)
    pairs = {
        "context_length": get("max_position_embeddings") or get("n_positions"), "vocab_size": get("vocab_size"),
        "embedding_length": get("hidden_size") or get("n_embd"), "block_count": get("num_hidden_layers") or get("n_layer"),
        "attention.head_count": get("num_attention_heads") or get("n_head"),
        "attention.head_count_kv": get("num_key_value_heads"),
    }
    for key, value in pairs.items():
        equal(key, field(reader, f"{name}.{key}"), value)
    epsilon = field(reader, f"{name}.attention.layer_norm{'' if name == 'gpt2' else '_rms'}_epsilon")
    equal("epsilon", epsilon, float(numpy.float32(get("layer_norm_epsilon") or get("rms_norm_eps"))))
    if name == "llama":
        rope = get("rope_parameters") or config
        equal("rope.freq_base", field(reader, "llama.rope.freq_base"), float(numpy.float32(rope["rope_theta"])))


def check_tensors(reader, folder, config, kind):
    """Every tensor as the package makes it of the folder's."""
    tensors = load_file(folder / "model.safetensors")
    is_gpt2 = config["model_type"] == "gpt2"
    heads = {"attn_q": config.get("num_attention_heads"), "attn_k": config.get("num_key_value_heads")}
    seen = 0
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        expected = theirs(tensor.name, tensors, is_gpt2)
        part = tensor.name.split(".")[-2]
        if part in heads:
            expected = in_pairs(expected, heads[part])
        equal(f"type of {tensor.name}", tensor.tensor_type.name in ("F32", kind), True)
        equal(f"shape of {tensor.name}", [int(d) for d in reversed(tensor.shape)], list(expected.shape))
        made = quantize(numpy.ascontiguousarray(expected), tensor.tensor_type)
        if not numpy.array_equal(numpy.asarray(tensor.data).reshape(-1).view(numpy.uint8), made.reshape(-1).view(numpy.uint8)):
            raise Difference(f"{tensor.name} as {tensor.tensor_type.name} has other bytes than the package makes")
        seen += 1
    return seen


def folder_numbers(folder):
    """What transformers takes a folder's numbers to be."""
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    names = ["model_type", "vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id"]
    if config["model_type"] == "gpt2":
        names += ["n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon"]
        config["n_inner"] = config["n_inner"] or 4 * config["n_embd"]
        names += ["n_inner"]
    else:
        names += ["max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
        names += ["head_dim", "intermediate_size", "rms_norm_eps", "rope_parameters"]
    found = {name: config[name] for name in names}
    # The file has it in 32 bits.
    for name in ("rms_norm_eps", "layer_norm_epsilon"):
        if name in found:
            found[name] = float(numpy.float32(found[name]))
    return found


def chat_template(folder):
    """The template of a folder's conversations, if it has one."""
    beside, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if beside.exists():
        return beside.read_text()
    return json.loads(config.read_text()).get("chat_template") if config.exists() else None


def check_back(arguments, path, folder, scratch):
    """What we make of our own F32 file is the folder again."""
    back = scratch / "back"
    run(arguments.bin / "examples" / "gguf", "read", path, back)
    equal("configuration read back", folder_numbers(back), folder_numbers(folder))
    equal("chat template read back", chat_template(back), chat_template(folder))
    expected, found = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    if json.loads((back / "config.json").read_text())["tie_word_embeddings"]:
        expected.pop("lm_head.weight", None)
    equal("names read back", sorted(found), sorted(expected))
    for name, value in found.items():
        if not numpy.array_equal(value, expected[name].astype(numpy.float32)):
            raise Difference(f"{name} read back differs")
    return [Tokenizer.from_file(str(back / name)) for name in ("tokenizer.json", "listed.json")]


def texts(arguments):
    """Awkward pieces, and the beginnings of real documents."""
    yield from AWKWARD
    for path in arguments.text:
        with path.open() as lines:
            for _, line in zip(range(arguments.documents), lines):
                yield json.loads(line)["text"][:4000]


def check_tokenizer(arguments, original, back):
    characters = 0
    for text in texts(arguments):
        ids = original.encode(text).ids
        equal(f"encoding of {text[:60]!r}", back.encode(text).ids, ids)
        equal(f"decoding of {text[:60]!r}", back.decode(ids), original.decode(ids))
        characters += len(text)
    return characters


def check_llama_cpp(arguments, path, folder, original, config):
    sys.path.insert(0, str(arguments.llama_cpp))
    import llama_cpp

    context = config.get("max_position_embeddings") or config["n_positions"]
    context = min(context, 512)
    model = llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=1, seed=0, type_k=0, type_v=0
    )
    cut, other = 0, []
    for text in texts(arguments):
        ids = original.encode(text, add_special_tokens=False).ids
        taken = model.tokenize(text.encode(), add_bos=False, special=True)
        cut += len(ids)
        if taken != ids:
            other.append((text, next((i for i, (a, b) in enumerate(zip(ids, taken)) if a != b), min(len(ids), len(taken)))))
    print(f"  llama.cpp: {cut:,} tokens, {len(other)} texts with others")
    for text, place in other[:5]:
        print(f"    {text[:60]!r}, from token {place} on")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = original.encode("Once upon a time there was a little girl who had 3 dogs. She said: \"Let's go!\"").ids[: context // 4]
    with torch.no_grad():
        expected = reference(torch.tensor([prompt])).logits[0].numpy()
    model.reset()
    model.eval(prompt)
    logits = numpy.array(model.scores[: len(prompt)])
    spread = numpy.abs(logits - expected).max()
    print(f"  llama.cpp: logits of {len(prompt)} positions differ by {spread:.1e} at most, of {numpy.abs(expected).max():.1f}")
    if not spread <= arguments.tolerance:
        raise Difference("logits differ by more than the tolerance")
    ours, tokens = [], list(prompt)
    for _ in range(min(arguments.greedy, context - len(prompt) - 1)):
        token = int(numpy.argmax(model.scores[model.n_tokens - 1]))
        ours.append(token)
        model.eval([token])
    with torch.no_grad():
        logits = reference(torch.tensor([tokens + ours])).logits[0].numpy()
    # transformers is asked behind each of them: behind a tie, two continuations would have nothing in common.
    steps = logits[len(prompt) - 1 : -1]
    others = sum(int(numpy.argmax(step)) != token for step, token in zip(steps, ours))
    gaps = [float(step.max() - step[token]) for step, token in zip(steps, ours)]
    print(f"  llama.cpp: {len(ours)} greedy tokens, of which transformers takes others {others} times")
    if max(gaps) > 2 * arguments.tolerance:
        raise Difference("a greedy token is another")
    if len(other) > arguments.other_texts:
        raise Difference(f"{len(other)} texts become other tokens in llama.cpp")


def check_folder(arguments, folder, label):
    config = json.loads((folder / "config.json").read_text())
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    print(label)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for kind in ("F32", "F16", "Q8_0"):
            path = scratch / kind / "model.gguf"
            notes = run(arguments.bin / "examples" / "gguf", "write", folder, path.parent, kind)
            reader = gguf.GGUFReader(path)
            check_numbers(reader, config)
            seen = check_tensors(reader, folder, config, kind)
            tokens = field(reader, "tokenizer.ggml.tokens")
            equal("tokens", len(tokens), config["vocab_size"])
            equal("chat template", field(reader, "tokenizer.chat_template"), chat_template(folder))
            for token, number in original.get_vocab().items():
                equal(f"token {number}", tokens[number], token)
            kept = " with tokenizer.json" if reader.get_field("tokenizer.huggingface.json") else ""
            model, pre = field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre")
            print(f"  {kind}: {seen} tensors equal, {path.stat().st_size:,} bytes, {model} ({pre}){kept}")
            if kind == "F32":
                print("".join(f"  note: {note}\n" for note in notes.splitlines()), end="")
            del reader
            if kind != "F32":
                path.unlink()
        path = scratch / "F32" / "model.gguf"
        back, listed = check_back(arguments, path, folder, scratch)
        print(f"  tokenizer: {check_tokenizer(arguments, original, back):,} characters encode and decode alike")
        others = [text for text in texts(arguments) if listed.encode(text).ids != original.encode(text).ids]
        print(f"  tokenizer by llama.cpp's keys alone: {len(others)} texts with other tokens {[text[:20] for text in others[:5]]}")
        if arguments.llama_cpp:
            check_llama_cpp(arguments, path, folder, original, config)


def crossing(arguments, ways):
    """A byte-level tokenizer whose tokens would cross any cut, with the first words of a text cut in one way."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"], show_progress=False
    )
    pieces = [text[at : at + 40] for text in texts(arguments) for at in range(0, len(text), 40)]
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(ways)
    return tokenizer


def ways_to_cut():
    """llama.cpp's names, as Hugging Face's library has them, and whether whole words come first."""
    def split(pattern):
        return pre_tokenizers.Split(Regex(pattern), "isolated")

    by_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    short = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    rest = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    llama3 = short + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + rest
    qwen2 = short + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + rest
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    cased = [rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+", rf"[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*"]
    behind = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    yield "gpt-2", [by_words], False
    yield "smollm", [pre_tokenizers.Digits(individual_digits=True), by_words], False
    yield "llama-bpe", [split(llama3), plain], True
    yield "dbrx", [split(llama3), plain], False
    yield "qwen2", [split(qwen2), plain], False
    yield "gpt-4o", [split("|".join(part + short + "?" for part in cased) + r"|\p{N}{1,3}" + behind), plain], False
    yield "tekken", [split("|".join(cased) + r"|\p{N}" + behind), plain], True
    yield "falcon", [pre_tokenizers.Punctuation("contiguous"), by_words, split("[0-9][0-9][0-9]")], False
    yield "default", [
        split(r"[\p{P}\$\+<=>\^~\|]+"), split(gpt2), pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]"), plain
    ], False


def random_folders(arguments, scratch):
    """Small networks in the variants that GGUF has, with the fixtures' tokenizers and with tokenizers of every way to cut text."""
    torch.manual_seed(0)
    scaled = {"rope_theta": 10000.0, "factor": 4.0}
    third = scaled | {
        "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64
    }
    llama = {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    }
    cases = {
        "gpt2": ("byte-level", transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=128)),
        "gpt2 with n_inner": ("byte-level", transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=128, n_inner=96)),
        "llama": ("sentencepiece", transformers.LlamaConfig(**llama)),
        "llama, tied, unigram": ("unigram", transformers.LlamaConfig(**llama, tie_word_embeddings=True)),
        "llama with wide heads": ("byte-level", transformers.LlamaConfig(**llama, head_dim=32)),
        "llama, linear positions": ("byte-level", transformers.LlamaConfig(**llama, rope_parameters=scaled | {"rope_type": "linear"})),
        "llama, Llama 3's positions": ("byte-level", transformers.LlamaConfig(**llama, rope_parameters=third)),
    }
    written = {name: (FIXTURES / f"{name}.json").read_text() for name in ("byte-level", "sentencepiece", "unigram")}
    for name, ways, whole_words in ways_to_cut():
        made = json.loads(crossing(arguments, ways).to_str())
        made["model"]["ignore_merges"] = whole_words
        written[name] = json.dumps(made)
        cases[f"llama, text cut as {name}"] = (name, transformers.LlamaConfig(**llama | {"num_hidden_layers": 1}))
    for label, (tokenizer, config) in cases.items():
        folder = scratch / label
        loaded = Tokenizer.from_str(written[tokenizer])
        # More rows than tokens.
        config.vocab_size = (loaded.get_vocab_size() + 31) // 32 * 32
        config.bos_token_id, config.eos_token_id = (1, 2) if tokenizer in ("sentencepiece", "unigram") else (0, 0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, value in model.named_parameters():
            value.data = value.data * 3 + (0.1 * torch.randn_like(value) if value.dim() == 1 else 0)
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(written[tokenizer])
        yield folder, label


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="*", type=pathlib.Path)
    parser.add_argument("--random", action="store_true", help="small folders of random weights, too")
    parser.add_argument("--text", action="append", default=[], type=pathlib.Path, help="JSON lines with a `text`; repeatable")
    parser.add_argument("--documents", type=int, default=50, help="documents of each text")
    parser.add_argument("--llama-cpp", type=pathlib.Path, help="where llama-cpp-python is installed")
    parser.add_argument("--greedy", type=int, default=64, help="tokens to continue with")
    parser.add_argument("--tolerance", type=float, default=1e-2, help="largest difference of a logit from llama.cpp's")
    parser.add_argument("--other-texts", type=int, default=0, help="texts that llama.cpp may cut otherwise")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target" / "release", help="where the programs are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        for folder in arguments.folder:
            check_folder(arguments, folder, str(folder))
        if arguments.random:
            with tempfile.TemporaryDirectory() as scratch:
                for folder, label in random_folders(arguments, pathlib.Path(scratch)):
                    check_folder(arguments, folder, label)
    except Difference as difference:
        sys.exit(f"error: {difference}")
    print("all equal")


if __name__ == "__main__":
    main()
