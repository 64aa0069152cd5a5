"""Times the `tokenizers` package on JSON lines: the counterpart of the example `tokenize` of offshoot-data.

  python tokenize.py FILE.jsonl TOKENIZER.json [PASSES] [--fast]

Prints what the example prints; without blake3 installed the ids are compared by sha256 instead, and by count.
`--fast` times encode_batch_fast, which leaves offsets out, instead of encode_batch.
"""

import array
import hashlib
import json
import sys
import time

import tokenizers


def main():
    arguments = [a for a in sys.argv[1:] if a != "--fast"]
    path, file = arguments[:2]
    passes = int(arguments[2]) if len(arguments) > 2 else 5
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    with open(path, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
    texts = [text for text in texts if text.strip()]
    encode = tokenizer.encode_batch_fast if "--fast" in sys.argv else tokenizer.encode_batch
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        # Ids are what a corpus needs; the list of encodings alone holds them where Python cannot use them.
        ids = [encoding.ids for encoding in encode(texts, add_special_tokens=False)]
        seconds.append(round(time.perf_counter() - start, 4))
    digest = hashlib.sha256()
    for own in ids:
        words = array.array("I", own)
        if sys.byteorder == "big":
            words.byteswap()
        digest.update(words.tobytes())
    print(json.dumps({
        "documents": len(texts), "bytes": sum(len(text.encode()) for text in texts),
        "tokens": sum(map(len, ids)), "sha256": digest.hexdigest(), "passes_s": seconds}))


main()
