"""What a folder without weights that can be read holds instead, in words that help."""

from __future__ import annotations

from pathlib import Path

_ANOTHER = "take the version of the model in safetensors"
_FILES: dict[tuple[str, ...], str] = {
    ("*.gguf", "*/*.gguf"): f"{{}} is GGUF, whose weights are compressed for llama.cpp: {_ANOTHER}",
    ("adapter_model.safetensors", "adapter_config.json"): (
        "these are adapters: name them as lora.pretrained, and here the model they are for"
    ),
    ("consolidated*.safetensors", "params.json", "original/params.json"): (
        "{} is Mistral's or Meta's own format: take the files of the same model that "
        "`transformers` reads, model*.safetensors"
    ),
    ("*.safetensors",): (
        "{} is a variant or a part of a model: rename it to model.safetensors if it is a whole "
        "one, or fetch the index that belongs to it"
    ),
    ("*.bin", "*.pt", "*.pth", "*.ckpt"): (
        "{} may run any code when read, and is not: load it with `transformers` where that is "
        "safe, and `save_pretrained` it again"
    ),
    ("*.h5", "*.ckpt.index"): (
        "{} is of TensorFlow: load it with a `transformers` below 5 (`from_tf=True`), and "
        "`save_pretrained` it"
    ),
    ("*.msgpack",): (
        "{} is of Flax: load it with a `transformers` below 5 (`from_flax=True`), and "
        "`save_pretrained` it"
    ),
    ("*.onnx", "onnx/*.onnx"): f"{{}} is ONNX, to run models and not to train them: {_ANOTHER}",
    ("openvino*.xml", "*.mlpackage", "*.mlmodel", "*.tflite", "*.task"): (
        f"{{}} is of OpenVINO, Core ML or LiteRT, to run models and not to train them: {_ANOTHER}"
    ),
    ("*.npz",): f"{{}} is of MLX: {_ANOTHER}",
}
"""Patterns of files, the most telling first, and what is said of them."""


def instead(folder: Path) -> str:
    """What is in a folder, and what to do, to follow an error; nothing of what is not known."""
    for patterns, said in _FILES.items():
        found = sorted(
            str(file.relative_to(folder)) for pattern in patterns for file in folder.glob(pattern)
        )
        if found:
            return f"; {said.format(', '.join(found[:3]) + ' …' * (len(found) > 3))}"
    return ""
