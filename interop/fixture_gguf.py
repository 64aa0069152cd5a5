"""Fixtures of GGUF: a file of every type by the gguf package, what its tensors are, and small tokenizers of Hugging Face's library."""

import json

import gguf
import numpy
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SHAPE = (3, 512)
# Blocks of types that the package does not make from numbers: where their scales of 16 bits lie.
SCALES = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
MADE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]

TEXT = """The old lighthouse keeper counted ships each evening. "Twelve today," he said, "and it's only 7 o'clock!"
In 1984 they'd paid 3,250 crowns for 128 lamps; now nobody's selling. Größe, naïve café, œuvre: words from elsewhere.
def area(width, height):
    return width * height  # in m^2
Привет, мир. 日本語の文 is short. The children were singing, running and laughing while the water was rising.
"""


def blocks(name, generator):
    """Bytes of SHAPE numbers of one type: random, but with scales that are ordinary numbers."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    count = SHAPE[0] * SHAPE[1] // elements
    data = generator.integers(0, 256, (count, size), dtype=numpy.uint8)
    for place in SCALES[name]:
        scales = (generator.standard_normal(count) / 64).astype(numpy.float16)
        data[:, place : place + 2] = scales.view(numpy.uint8).reshape(count, 2)
    return data.reshape(SHAPE[0], -1)


def write_types(folder):
    generator = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(folder / "types.gguf", "llama")
    writer.add_custom_alignment(64)
    for kind in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"):
        bits = int(kind.removeprefix("u").removeprefix("int"))
        value = 2**bits - 1 if kind.startswith("u") else -(2 ** (bits - 1))
        getattr(writer, f"add_{kind}")(f"of.{kind}", value)
        named = gguf.GGUFValueType[kind.upper()]
        writer.add_key_value(f"several.{kind}", [value, 0, 1], gguf.GGUFValueType.ARRAY, named)
    writer.add_float32("of.float32", -1.5e-3)
    writer.add_float64("of.float64", 1e300)
    writer.add_bool("of.bool", True)
    writer.add_string("of.string", "naïve 日本")
    writer.add_array("several.float32", [0.5, -2.0])
    writer.add_key_value("several.float64", [1e300, -0.25], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT64)
    writer.add_array("several.bool", [True, False, True])
    writer.add_array("several.string", ["▁a", "b c", "\n"])
    expected = {}
    values = generator.standard_normal(SHAPE, dtype=numpy.float32)
    # A block of zeros, and one whose largest number is negative.
    values[0, :32] = 0
    values[1, 40] = -9
    for name in MADE:
        kind = gguf.GGMLQuantizationType[name]
        data = quantize(values, kind)
        writer.add_tensor(name.lower(), data, raw_dtype=kind)
        expected[name.lower()] = dequantize(data.view(numpy.uint8) if name == "BF16" else data, kind)
    writer.add_tensor("f64", values.astype(numpy.float64) / 3)
    expected["f64"] = (values.astype(numpy.float64) / 3).astype(numpy.float32)
    for name in SCALES:
        kind = gguf.GGMLQuantizationType[name]
        data = blocks(name, generator)
        writer.add_tensor(name.lower(), data, raw_dtype=kind)
        expected[name.lower()] = dequantize(data, kind)
    # Five numbers: the next tensor starts behind padding.
    writer.add_tensor("odd", numpy.arange(5, dtype=numpy.float32))
    expected["odd"] = numpy.arange(5, dtype=numpy.float32)
    writer.add_tensor("iq4_nl", numpy.zeros((1, 18), dtype=numpy.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ4_NL)
    writer.add_tensor("i32", numpy.arange(6, dtype=numpy.int32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = {name: numpy.ascontiguousarray(value.reshape(-1), dtype=numpy.float32) for name, value in expected.items()}
    save_file(expected, folder / "expected.safetensors")


def special(content):
    return AddedToken(content, special=True, normalized=False)


def byte_level(folder):
    """Byte-level BPE as `gpt2` has it, with a token of the user's own behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[special("<|endoftext|>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens([special("<|im_start|>")])
    tokenizer.save(str(folder / "byte-level.json"))


def sentencepiece(folder):
    """BPE over characters with a byte for what is not among them, as Llama 2 has it: every way to put a token together is a merge."""
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(TEXT.splitlines(), trainer)
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    pieces = [piece for piece, _ in pieces if piece.isascii() or "▁" in piece]
    merged = [piece for piece in pieces if len(piece) > 1]
    single = [piece for piece in pieces if len(piece) == 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *merged, *single]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    merges = []
    for piece in merged:
        parts = [(piece[:cut], piece[cut:]) for cut in range(len(piece) - 1, 0, -1)]
        merges += [pair for pair in parts if all(part in vocabulary for part in pair)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([special(token) for token in tokens[:3]])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B:1", [("<s>", 1)])
    tokenizer.save(str(folder / "sentencepiece.json"))


def unigram(folder):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=[special("<unk>"), special("<s>"), special("</s>")],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    # The trainer's last bits and its order of equal scores change from run to run; these scores are exact in 32 bits, too.
    pieces = [(piece, round(score * 4096) / 4096) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    pieces[3:] = sorted(pieces[3:], key=lambda pair: (-pair[1], pair[0]))
    tokenizer.model = models.Unigram(pieces, 0, byte_fallback=False)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B:1 </s>:1", [("</s>", 2)])
    tokenizer.save(str(folder / "unigram.json"))


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_types(folder)
    byte_level(folder)
    sentencepiece(folder)
    unigram(folder)
