"""Runs openpi's PyTorch π0.5 or LeRobot's pi05 on a file of weights. Its parent is `other_models.py`.

    PYTHON benchmarks/other_models_child.py names PROGRAM CHECKOUT OUT.json
    PYTHON benchmarks/other_models_child.py actions PROGRAM CHECKOUT SIZES INPUTS WEIGHTS OUT.npz [ADAPTERS]
    PYTHON benchmarks/other_models_child.py layers PROGRAM CHECKOUT SIZES INPUTS WEIGHTS OUT.npz

PYTHON has CPU torch and the program's transformers, not this project. Names and shapes come from the model of
real size, made on the `meta` device: nothing is allocated. For actions the table of variants gets the tiny
ones of SIZES. Only the sizes that both programs hard-code are changed at run time; their code is untouched.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SIZES = ("width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")
REAL = {
    "gemma_2b": dict(zip(_SIZES, (2048, 18, 16384, 8, 1, 256), strict=True)),
    "gemma_300m": dict(zip(_SIZES, (1024, 18, 4096, 8, 1, 256), strict=True)),
}


def stub(name: str, path: Path | None = None, **members: Any) -> types.ModuleType:
    """A module of this name without the program's own `__init__`, which imports far more than is needed."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    if path is not None:
        module.__path__ = [str(path)]
    sys.modules[name] = module
    return module


class _Older(importlib.machinery.SourceFileLoader):
    """Reads LeRobot's source under Python 3.11: type parameters of functions and classes are left out."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        text = bytes(data).decode()
        plain = re.sub(r"\b(def \w+)\[[^\]]*\]", r"\1", text)
        subscript = "\n    __class_getitem__ = classmethod(lambda cls, _: cls)"
        plain = re.sub(r"^(class \w+)\[[^\]]*\](.*:)$", rf"\1\2{subscript}", plain, flags=re.MULTILINE)
        plain = re.sub(r"^type (\w+) =", r"\1 =", plain, flags=re.MULTILINE)
        flags = 0 if plain == text else annotations.compiler_flag
        return compile(plain, path, "exec", flags=flags, dont_inherit=True, optimize=_optimize)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, _target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name.startswith("lerobot") else None
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            spec.loader = _Older(name, spec.origin)
        return spec


def resize(module: Any, sizes: dict[str, Any] | None) -> None:
    """Gives both networks the sizes that the program hard-codes: those of vision, and of the vocabulary."""
    if sizes is None:
        return
    for name in [
        each
        for each in vars(module)
        if each.startswith(("PaliGemmaForConditional", "PiGemmaForCausal", "GemmaForCausal"))
    ]:
        setattr(module, name, _resized(getattr(module, name), sizes))


def _resized(network: Any, sizes: dict[str, Any]) -> Any:
    def build(config: Any) -> Any:
        if hasattr(config, "vision_config"):
            for key, value in sizes["vision"].items():
                setattr(config.vision_config, key, value)
            config.text_config.vocab_size = sizes["vocab_size"]
        else:
            config.vocab_size = sizes["vocab_size"]
        return network(config=config)

    return build


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def openpi(checkout: Path, sizes: dict[str, Any] | None, horizon: int) -> Any:
    """openpi's PI0Pytorch for π0.5, in float32."""
    source = checkout / "src/openpi"
    variants = {
        name: types.SimpleNamespace(**each) for name, each in ((sizes or {}).get("variants") or REAL).items()
    }
    for name in ("", ".models_pytorch", ".shared"):
        stub(f"openpi{name}", source / name.strip(".") if name else source)
    stub("openpi.models")
    sys.modules["openpi.models"].gemma = stub("openpi.models.gemma", get_config=variants.__getitem__)
    sys.modules["openpi.shared"].image_tools = stub("openpi.shared.image_tools")
    resize(importlib.import_module("openpi.models_pytorch.gemma_pytorch"), sizes)
    module = importlib.import_module("openpi.models_pytorch.pi0_pytorch")
    first, second = (sizes or {}).get("experts", ("gemma_2b", "gemma_300m"))
    return module.PI0Pytorch(
        types.SimpleNamespace(
            pi05=True, dtype="float32", action_dim=32, action_horizon=horizon, pytorch_compile_mode=None,
            paligemma_variant=first, action_expert_variant=second,
        )
    )  # fmt: skip


def lerobot(checkout: Path, sizes: dict[str, Any] | None, horizon: int) -> Any:
    """LeRobot's module of pi05, and a configuration for it in float32."""
    sys.path.insert(0, str(checkout / "src"))
    if sys.version_info < (3, 12):
        sys.meta_path.insert(0, _Finder())
    import transformers.models.gemma.modeling_gemma  # noqa: F401  before torchvision is a stub

    # LeRobot's configurations import its pictures, which nothing here opens.
    for name in (
        "",
        ".io",
        ".transforms",
        ".transforms.functional",
        ".transforms.v2",
        ".transforms.v2.functional",
    ):
        parent, _, child = f"torchvision{name}".rpartition(".")
        made = stub(f"torchvision{name}", checkout, __getattr__=_anything)
        if parent:
            setattr(sys.modules[parent], child, made)
    for name in ("lerobot.policies", "lerobot.policies.pi05"):
        stub(name, checkout / "src" / name.replace(".", "/"))
    module = importlib.import_module("lerobot.policies.pi05.modeling_pi05")
    configuration = importlib.import_module("lerobot.policies.pi05.configuration_pi05")
    if sizes is not None:
        table = {name: module.GemmaConfig(**each) for name, each in sizes["variants"].items()}
        first, second = sizes["experts"]
        # The configuration knows only two names; the tiny sizes take their places.
        module.get_gemma_config = {"gemma_2b": table[first], "gemma_300m": table[second]}.__getitem__
    resize(module, sizes)
    features = importlib.import_module("lerobot.configs")
    size = sizes["vision"]["image_size"] if sizes else 224
    cameras = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
    visual, action = features.FeatureType.VISUAL, features.FeatureType.ACTION
    config = configuration.PI05Config(
        chunk_size=horizon, n_action_steps=horizon, dtype="float32", device="cpu",
        image_resolution=(size, size),
        input_features={
            f"observation.images.{name}": features.PolicyFeature(visual, (3, size, size)) for name in cameras
        },
        output_features={"action": features.PolicyFeature(action, (32,))},
    )  # fmt: skip
    return module, config


def shapes(program: str, checkout: Path) -> dict[str, list[int]]:
    """Name → shape of each tensor that the program's model of real size saves and asks for."""
    prefix = ""
    with torch.device("meta"):
        if program == "openpi-pytorch":
            model = openpi(checkout, None, 10)
        else:
            module, config = lerobot(checkout, None, 50)
            # The policy is this network under the name `model`; it would move it to a device.
            model, prefix = module.PI05Pytorch(config), "model."
    return {f"{prefix}{name}": list(value.shape) for name, value in model.state_dict().items()}


def load_openpi(checkout: Path, sizes: dict[str, Any], horizon: int, checkpoint: Path) -> Any:
    """openpi's model with the weights of `checkpoint`, loaded as openpi loads them (`load_pytorch`)."""
    from safetensors.torch import load_model

    model = openpi(checkout, sizes, horizon)
    # As openpi loads weights: strict, the shared table by either of its names.
    load_model(model, checkpoint / "model.safetensors")
    torch.set_float32_matmul_precision("highest")
    return model.eval()


def openpi_actions(checkout: Path, sizes: dict[str, Any], inputs: dict[str, Any], checkpoint: Path) -> Any:
    """Samples from the given noise."""
    model = load_openpi(checkout, sizes, inputs["noise"].shape[1], checkpoint)
    preprocessing = sys.modules["openpi.models_pytorch.preprocessing_pytorch"]
    size = inputs["images"].shape[-2]
    names = preprocessing.IMAGE_KEYS
    plain = preprocessing.preprocess_observation_pytorch
    preprocessing.preprocess_observation_pytorch = lambda seen, *, train: plain(
        seen, train=train, image_resolution=(size, size)
    )
    batch = inputs["noise"].shape[0]
    observation = types.SimpleNamespace(
        images={name: inputs["images"][:, i].permute(0, 3, 1, 2) for i, name in enumerate(names)},
        image_masks={name: inputs["image_masks"][:, i] for i, name in enumerate(names)},
        state=torch.zeros(batch, 32), tokenized_prompt=inputs["tokens"],
        tokenized_prompt_mask=inputs["token_mask"],
        token_ar_mask=None, token_loss_mask=None,
    )  # fmt: skip
    return model.sample_actions("cpu", observation, noise=inputs["noise"], num_steps=int(inputs["steps"]))


def load_lerobot(
    checkout: Path, sizes: dict[str, Any], horizon: int, checkpoint: Path, adapters: Path | None = None
) -> Any:
    """The network of LeRobot's policy, loaded as LeRobot does (`PI05Policy.from_pretrained`, strict).

    `adapters` are put on the loaded policy by PEFT.
    """
    module, config = lerobot(checkout, sizes, horizon)
    model = module.PI05Policy(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # It returns a model of random weights when a tensor is missing, and says so in one printed line.
    loaded = module.PI05Policy.from_pretrained(checkpoint, config=model.config, strict=True)
    for name, value in loaded.state_dict().items():
        if value.numel() > 64 and torch.equal(value, before[name]) and bool(value.any()):
            raise SystemExit(f"LeRobot did not load {name}")
    if adapters is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(adapters)).base_model.model
    return loaded.model.eval()


def lerobot_actions(
    checkout: Path, sizes: dict[str, Any], inputs: dict[str, Any], checkpoint: Path, *adapters: Path
) -> Any:
    """Samples from the given noise."""
    inner = load_lerobot(checkout, sizes, inputs["noise"].shape[1], checkpoint, *adapters)
    images = [inputs["images"][:, i].permute(0, 3, 1, 2) for i in range(inputs["images"].shape[1])]
    masks = [inputs["image_masks"][:, i] for i in range(len(images))]
    return inner.sample_actions(
        images,
        masks,
        inputs["tokens"],
        inputs["token_mask"],
        noise=inputs["noise"],
        num_steps=int(inputs["steps"]),
    )


def layers(
    program: str, checkout: Path, sizes: dict[str, Any], inputs: dict[str, Any], checkpoint: Path
) -> dict[str, Any]:
    """What the loaded network's image tower, and its joint layers of both experts, make of `inputs`."""
    load = load_openpi if program == "openpi-pytorch" else load_lerobot
    network = load(checkout, sizes, inputs["suffix"].shape[1], checkpoint).paligemma_with_expert
    (prefix, suffix), _ = network.forward(
        # As both programs turn a mask into what is added to the logits.
        attention_mask=torch.where(inputs["mask"][:, None], 0.0, -2.3819763e38),
        position_ids=inputs["positions"].long(),
        inputs_embeds=[inputs["prefix"], inputs["suffix"]],
        use_cache=False,
        adarms_cond=[None, inputs["condition"]],
    )
    vision = network.embed_image(inputs["image"].permute(0, 3, 1, 2))
    return {"vision": vision.numpy(), "prefix": prefix.numpy(), "suffix": suffix.numpy()}


def lerobot_pipelines(checkout: Path, given: Any, tasks: list[str], policy: Path) -> dict[str, Any]:
    """What the policy's own pipelines make of frames: prompts, normalized actions, and actions of a model."""
    lerobot(checkout, None, 10)
    # Registers the step that writes the state into the prompt.
    importlib.import_module("lerobot.policies.pi05.processor_pi05")
    processor = importlib.import_module("lerobot.processor")
    converters = importlib.import_module("lerobot.processor.converters")
    prompts: list[str] = []

    def tokenize(text: list[str], **options: Any) -> dict[str, Any]:
        prompts.extend(text)
        blank = torch.ones(len(text), options["max_length"], dtype=torch.long)
        return {"input_ids": blank, "attention_mask": blank}

    load = processor.PolicyProcessorPipeline.from_pretrained
    before = load(
        policy,
        config_filename="policy_preprocessor.json",
        overrides={"tokenizer_processor": {"tokenizer": tokenize}},
    )
    after = load(
        policy,
        config_filename="policy_postprocessor.json",
        to_transition=converters.policy_action_to_transition,
        to_output=converters.transition_to_policy_action,
    )
    # As `make_pre_post_processors` does for loaded pipelines.
    steps = [step for step in before.steps if isinstance(step, processor.RelativeActionsProcessorStep)]
    for step in after.steps:
        if isinstance(step, processor.AbsoluteActionsProcessorStep):
            (step.relative_step,) = steps
    made: dict[str, list[Any]] = {"normalized": [], "recorded": []}
    for n, state in enumerate(given["states"]):
        frame = {"observation.state": torch.from_numpy(state)[None], "task": [tasks[n % len(tasks)]]}
        seen = before(frame | {"action": torch.from_numpy(given["recorded"][n])[None]})
        made["normalized"].append(seen["action"][0].numpy())
        made["recorded"].append(after(torch.from_numpy(given["normalized"][n])[None])[0].numpy())
    return {name: np.stack(each) for name, each in made.items()} | {"prompts": np.array(prompts)}


def main() -> None:
    what, program, checkout, *rest = sys.argv[1:]
    torch.manual_seed(0)
    if what == "pipelines":
        frames, tasks, policy, out = map(Path, rest)
        found = lerobot_pipelines(Path(checkout), np.load(frames), json.loads(tasks.read_text()), policy)
        np.savez(out, **found)
        return
    if what == "names":
        Path(rest[0]).write_text(json.dumps(shapes(program, Path(checkout))))
        return
    sizes, given, checkpoint, out, *adapters = rest
    inputs = {name: torch.from_numpy(value) for name, value in np.load(given).items()}
    if what == "layers":
        table = json.loads(Path(sizes).read_text())
        with torch.no_grad():
            np.savez(out, **layers(program, Path(checkout), table, inputs, Path(checkpoint)))
        return
    inputs["tokens"] = inputs["tokens"].long()
    run = openpi_actions if program == "openpi-pytorch" else lerobot_actions
    with torch.no_grad():
        actions = run(
            Path(checkout),
            json.loads(Path(sizes).read_text()),
            inputs,
            Path(checkpoint),
            *map(Path, adapters),
        )
    np.savez(out, actions=actions.numpy(), torch=torch.__version__)


if __name__ == "__main__":
    main()
