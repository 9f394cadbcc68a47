"""Prints which experts unmodified llama.cpp selects, as JSON {layer: {expert: tokens}}: selections.py MODEL < texts.json.

Reads each layer's `ffn_moe_topk` through cb_eval, the callback that llama.cpp calls with every tensor it has computed;
xllamacpp's library exports the C API. Logits are asked for every token, since the last layer is computed for those only.
"""

import ctypes
import json
import re
import struct
import sys
from collections import Counter

import xllamacpp.xllamacpp as package

NUM_PARAMS_BYTES = (
    512  # more than any release's parameters; what is passed by value lies on the stack, where more does no harm
)
NUM_CONTEXT_TOKENS = 512


class Params(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint8 * NUM_PARAMS_BYTES)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class Tensor(ctypes.Structure):
    """The beginning of a ggml_tensor."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("lengths", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Tensor), ctypes.c_bool, ctypes.c_void_p)
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
# defrag_thold -1, no callback, no user data, f16 keys and f16 values: so the defaults look around cb_eval in every release.
AROUND_CALLBACK = struct.pack("<fQQii", -1.0, 0, 0, 1, 1)


def main() -> None:
    library = ctypes.CDLL(package.__file__)
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab", "llama_get_memory"):
        getattr(library, name).restype = ctypes.c_void_p
    library.llama_model_default_params.restype = library.llama_context_default_params.restype = Params
    library.llama_batch_init.restype = Batch
    library.ggml_get_name.restype = ctypes.c_char_p
    quiet = LOG(lambda level, text, data: None)
    library.llama_log_set(quiet, None)
    library.llama_backend_init()
    counts: dict[str, Counter[int]] = {}

    def watch(tensor, ask, data):
        match = re.fullmatch(r"ffn_moe_topk-(\d+)", library.ggml_get_name(tensor).decode())
        if match and not ask:
            shape, strides = tensor.contents.lengths, tensor.contents.strides
            row = (ctypes.c_int32 * shape[0])()
            for token in range(shape[1]):
                library.ggml_backend_tensor_get(
                    tensor, row, ctypes.c_size_t(token * strides[1]), ctypes.c_size_t(4 * shape[0])
                )
                counts.setdefault(match[1], Counter()).update(row)
        return bool(match) or not ask

    callback = CALLBACK(watch)
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Params]
    library.llama_init_from_model.argtypes = [ctypes.c_void_p, Params]
    model = library.llama_model_load_from_file(sys.argv[1].encode(), library.llama_model_default_params())
    params = library.llama_context_default_params()
    data = bytearray(params.data)
    place = data.index(AROUND_CALLBACK) + 4
    struct.pack_into("<Q", data, place, ctypes.cast(callback, ctypes.c_void_p).value or 0)
    struct.pack_into(
        "<III", data, 0, NUM_CONTEXT_TOKENS, NUM_CONTEXT_TOKENS, NUM_CONTEXT_TOKENS
    )  # n_ctx, n_batch, n_ubatch
    context = ctypes.c_void_p(library.llama_init_from_model(model, Params.from_buffer_copy(data)))
    library.llama_set_n_threads(context, 1, 1)
    vocabulary = ctypes.c_void_p(library.llama_model_get_vocab(ctypes.c_void_p(model)))
    for text in json.load(sys.stdin):
        encoded, tokens = text.encode(), (ctypes.c_int32 * NUM_CONTEXT_TOKENS)()
        count = library.llama_tokenize(
            vocabulary, encoded, len(encoded), tokens, NUM_CONTEXT_TOKENS, ctypes.c_bool(False), ctypes.c_bool(True)
        )
        batch = library.llama_batch_init(NUM_CONTEXT_TOKENS, 0, 1)
        batch.n_tokens = count
        for number in range(count):
            batch.token[number], batch.pos[number] = tokens[number], number
            batch.n_seq_id[number], batch.seq_id[number][0], batch.logits[number] = 1, 0, 1
        library.llama_memory_clear(ctypes.c_void_p(library.llama_get_memory(context)), ctypes.c_bool(True))
        if library.llama_decode(context, batch):
            sys.exit("llama_decode failed")
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()
