"""The policy with its value head, and the frozen reference."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import lora
from .assets import as_source, resolve
from .errors import AssetError, ModelError, NoAttribute, loading
from .families import (
    CacheKind,
    Halves,
    Reader,
    cache_kind,
    keeps_logits,
    position_ids_from,
    text_config,
    without_preferences,
)
from .harmless import without_harmless
from .randomness import seeded
from .sampler import draw, sample_recorded
from .trunk import (
    TrunkStates,
    freeze_adapters_below,
    freeze_below,
    layers_of_share,
    trunk_version,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

VALUE_HEAD_FILE = "value_head.safetensors"

NOT_SUPPORTED = {
    "reward_adapter": "a reward model is a model of its own here: see RewardModel",
    "reward_adapter_name": "a reward model is a model of its own here: see RewardModel",
    "trust_remote_code": "code that a checkpoint brings with it is never run",
}
"""Arguments that TRL 0.11.4's `from_pretrained` took and this one refuses, and why.

A value that asks for nothing (`harmless.asks_nothing`) is taken, and `trust_remote_code` where the
checkpoint loads without.
"""

WITHOUT_EFFECT = {
    "summary_dropout_prob": "PPO runs without dropout, and the value head has none",
}
"""Arguments that TRL 0.11.4's `from_pretrained` took and that change nothing in PPO: left out."""

GONE = {
    "compute_reward_score": NOT_SUPPORTED["reward_adapter"],
    "add_and_load_reward_modeling_adapter": NOT_SUPPORTED["reward_adapter"],
}
"""Methods of TRL 0.11.4's model, and what to use instead."""


def needs_own_code(folder: Path) -> bool:
    """Whether transformers does not know the kind of model, but the checkpoint brings code."""
    from transformers import CONFIG_MAPPING

    path = folder / "config.json"
    if not path.exists():  # what loads the folder will say so
        return False
    with loading(folder):
        config = json.loads(path.read_text(encoding="utf-8"))
    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def load_tokenizer(
    name: str | Path,
    revision: str | None = None,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or local folder; without a pad token, it pads with EOS.

    `revision`, `token` and `cache_dir` are for the download from the Hub.
    """
    from transformers import AutoTokenizer

    folder = resolve(as_source(name, revision or "main"), token=token, cache_dir=cache_dir)
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer in {folder} has neither pad nor EOS token: set one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class AutoModelForCausalLMWithValueHead(nn.Module):
    """A causal language model (the policy) and a linear value head on its last hidden state.

    Any decoder-only model of transformers can be the policy. The value head gives V_t, an estimate
    of the return from the state before token t on.

    Attributes:
        pretrained_model: the language model, an ordinary `PreTrainedModel`, or PEFT's wrapper
            around one: then its adapter is what is trained.
        v_head: hidden size -> 1, kept in float32.
        num_shared_layers: how many of the lowest layers are frozen (see `create_reference_model`).
    """

    def __init__(
        self,
        pretrained_model: PreTrainedModel | PeftModel,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
    ) -> None:
        """
        Args:
            v_head_init_strategy: None for torch's default, "normal" for weights of standard
                deviation `v_head_initializer_range` and a bias of 0.
        """
        super().__init__()
        if pretrained_model.config.is_encoder_decoder:
            raise ModelError(
                f"{type(pretrained_model).__name__} is an encoder-decoder: PPO here needs a "
                "decoder-only model"
            )
        if pretrained_model.get_output_embeddings() is None:
            raise ModelError(
                f"{type(pretrained_model).__name__} has no language model head: load it with "
                "AutoModelForCausalLM"
            )
        self.pretrained_model = pretrained_model
        self.config = pretrained_model.config
        # OPT-350m projects its last hidden state down to the width of its embeddings.
        sizes = text_config(self.config)
        width = getattr(sizes, "word_embed_proj_dim", sizes.hidden_size)
        self.v_head = nn.Linear(width, 1)
        if v_head_init_strategy == "normal":
            nn.init.normal_(self.v_head.weight, std=v_head_initializer_range)
            nn.init.zeros_(self.v_head.bias)
        elif v_head_init_strategy is not None:
            raise ModelError(
                f"v_head_init_strategy is {v_head_init_strategy!r}: use None or 'normal'"
            )
        self.v_head.to(pretrained_model.device)
        self.num_shared_layers = 0
        self.cache: CacheKind = cache_kind(lora.language_model(pretrained_model))
        # A tuple, so that the two halves are not registered as submodules a second time.
        self.halves: Halves | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | PreTrainedModel | PeftModel,
        revision: str | None = None,
        **kwargs: Any,
    ) -> AutoModelForCausalLMWithValueHead:
        """Load a policy from a hub id, a local folder, or a language model already in memory.

        A folder may also hold a LoRA adapter: it is put on the language model that it names, and
        trained further. With `peft_config` a new adapter is put on the model, and trained.

        A value head saved with the weights, by this class or by TRL's, is loaded; otherwise a fresh
        one is drawn from a fixed seed, leaving the caller's random state alone. Weights are float32
        unless `dtype` says otherwise: PPO's small updates vanish in bfloat16.

        Args:
            revision: branch, tag or commit of a hub id; "main" by default.
            kwargs: `v_head_init_strategy` and `v_head_initializer_range`; `token` and `cache_dir`
                for the download; `peft_config`, a `peft.LoraConfig`; `merge=True`, to put the
                adapter of a folder or of PEFT's model into the weights, all of which are trained
                then; `is_trainable=False`, for a folder's adapter that stays as it is, in a
                reference; `load_in_8bit` and `load_in_4bit`, for weights under an adapter; all
                others are for transformers' `from_pretrained` (`torch_dtype` is `dtype` there
                today).

        Raises:
            AssetError: if the weights cannot be found. ModelError: for encoder-decoder models,
                adapters that are no LoRA, and for arguments of TRL's that are not supported
                (`NOT_SUPPORTED`).
        """
        from transformers import AutoModelForCausalLM, PreTrainedModel

        name, code = pretrained_model_name_or_path, "trust_remote_code"
        own_code = kwargs.pop(code, False)
        kwargs = without_harmless(kwargs, NOT_SUPPORTED, WITHOUT_EFFECT)
        for argument in NOT_SUPPORTED.keys() & kwargs.keys():
            raise ModelError(f"{argument} is not supported: {NOT_SUPPORTED[argument]}")
        head_kwargs = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith("v_head_init")}
        adapter = {k: kwargs.pop(k, None) for k in ("peft_config", "merge")}
        is_trainable = kwargs.pop("is_trainable", True)
        if "use_auth_token" in kwargs:  # its old name
            kwargs["token"] = kwargs.pop("use_auth_token")
        download = {k: kwargs.pop(k, None) for k in ("token", "cache_dir")}
        with seeded(0):
            if isinstance(name, PreTrainedModel) or lora.is_peft_model(name):
                if unread := [*kwargs, *(k for k, value in download.items() if value is not None)]:
                    logger.warning(
                        "%s left out: that is for loading, and the %s is in memory",
                        ", ".join(unread),
                        type(name).__name__,
                    )
                return cls(lora.adapted(name, **adapter), **head_kwargs).eval()
            source = as_source(name, revision or "main")
            folder = resolve(source, **download)
            its_base = lora.base_of(folder)
            base = folder if its_base is None else _resolve_base(folder, *its_base, **download)
            if its_base is not None and base == folder:
                raise ModelError(
                    f"{folder} holds an adapter beside its own language model: put the adapter's "
                    f"files ({lora.CONFIG_FILE}, adapter_model.*, {VALUE_HEAD_FILE}) into another "
                    "folder, and load that"
                )
            kwargs = lora.quantisation(kwargs, its_base is not None, **adapter)
            kwargs.setdefault("dtype", kwargs.pop("torch_dtype", torch.float32))
            if own_code and needs_own_code(base):
                raise ModelError(f"{code} is not supported: {NOT_SUPPORTED[code]}")
            with loading(base):
                # Left unset, transformers asks the reader whether to run a repository's own code.
                loaded = AutoModelForCausalLM.from_pretrained(
                    base, trust_remote_code=False, **kwargs
                )
            if its_base is not None:
                loaded = lora.load(loaded, folder, is_trainable)
            loaded = lora.adapted(loaded, **adapter, base=source if its_base is None else None)
            model = cls(loaded, **head_kwargs)
        with loading(folder):
            if (head := _saved_value_head(folder)) is not None:
                model.v_head.load_state_dict(head)
        return model.eval()

    def __getattr__(self, name: str) -> Any:
        """A part of the model; of TRL's other names, what to use instead."""
        if name in GONE:
            raise NoAttribute(f"the model has no {name}, which is TRL's: {GONE[name]}")
        return super().__getattr__(name)

    @property
    def is_peft_model(self) -> bool:
        """Whether an adapter is trained in place of the language model's own weights."""
        return lora.is_peft_model(self.pretrained_model)

    @is_peft_model.setter
    def is_peft_model(self, given: bool) -> None:
        """Scripts of TRL's say so of a model; ModelError where it is not so."""
        if given != self.is_peft_model:
            raise ModelError(
                f"is_peft_model is set to {given}, and the model is a "
                f"{type(self.pretrained_model).__name__}: leave it out, the model is looked at"
            )

    @property
    def language_model(self) -> PreTrainedModel:
        """What is computed with: the model of transformers', with an adapter in it or without."""
        return lora.language_model(self.pretrained_model)

    @property
    def split(self) -> Halves:
        """Trunk and top. Raises ModelError where no layers are frozen."""
        if self.halves is None:
            raise ModelError("the model has no frozen trunk: create_reference_model makes one")
        return self.halves

    def trunk(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Hidden states after the frozen layers, (B, L, hidden), without gradient.

        They are in the dtype of the model's weights, float32 unless it was loaded otherwise.

        They depend on nothing that PPO trains: computed once per batch, they serve the reference
        and every pass of the policy.
        """
        trunk = self.split.trunk.base_model
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids}
        with torch.no_grad():
            return trunk(input_ids, use_cache=False, **inputs)[0].to(self.split.dtype)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        trunk_states: Tensor | None = None,
        logits_to_keep: Tensor | None = None,
    ) -> tuple[Tensor, None, Tensor]:
        """Logits (B, K, V), None (a loss, in TRL's signature) and values (B, K).

        Args:
            input_ids, attention_mask, position_ids: (B, L).
            trunk_states: (B, L, hidden) from `trunk`, in place of input_ids: only the layers above
                the trunk are computed.
            logits_to_keep: (K,) the positions wanted; all of them by default.
        """
        if trunk_states is None:
            model, inputs = self.language_model, {"input_ids": input_ids}
        else:
            model, inputs = self.split.top, {"inputs_embeds": trunk_states}
        all_logits = logits_to_keep is None or not keeps_logits(model)
        if not all_logits:
            inputs["logits_to_keep"] = logits_to_keep
        output = model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            output_hidden_states=True,
            **inputs,
        )
        hidden, logits = output.hidden_states[-1], output.logits
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
            logits = logits[:, logits_to_keep] if all_logits else logits
        return logits, None, self.v_head(hidden.to(self.v_head.weight.dtype)).squeeze(-1)

    @torch.no_grad()
    def sample(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        max_new_tokens: int,
        eos_token_ids: list[int],
        pad_token_id: int,
        temperature: float = 1.0,
    ) -> tuple[Tensor, TrunkStates | None]:
        """Continue each row by draws from the whole distribution, softmax(z / temperature).

        That is what `transformers`' generate does with do_sample, top_k 0 and top_p 1, in less
        time.

        Args:
            input_ids, attention_mask: (B, Q), padded on the left.

        Returns:
            (B, Q + T), T up to `max_new_tokens`; after its first EOS a row holds padding. And what
            the frozen trunk, if there is one, made of these tokens on the way.
        """
        if self.cache == "generate":
            return self._sample_with_generate(
                input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                eos_token_id=eos_token_ids or None,
                pad_token_id=pad_token_id,
                temperature=temperature,
            ), None
        if input_ids.is_cuda and self.cache == "plain":
            settings = {"eos_token_ids": eos_token_ids, "pad_token_id": pad_token_id}
            settings |= {"max_new_tokens": max_new_tokens, "temperature": temperature}
            recorded = self._sample_recorded(input_ids, attention_mask, **settings)
            if recorded is not None:
                return recorded
        read = Reader(self.language_model, self.halves, self.cache)
        sequences, new, positions = input_ids, input_ids, position_ids_from(attention_mask)
        going_on = torch.ones_like(input_ids[:, 0], dtype=torch.bool)
        ends = torch.tensor(eos_token_ids, device=input_ids.device)
        for _ in range(max_new_tokens):
            logits = read(new, attention_mask, positions)
            tokens = torch.where(going_on, draw(logits.float() / temperature), pad_token_id)
            going_on = going_on & ~torch.isin(tokens, ends)
            new, positions = tokens.unsqueeze(1), positions[:, -1:] + 1
            sequences = torch.cat([sequences, new], dim=1)
            attention_mask = torch.cat([attention_mask, torch.ones_like(new)], dim=1)
            if not going_on.any():
                break
        if self.halves is None:
            return sequences, None
        return sequences, self._trunk_states(sequences, attention_mask, torch.cat(read.hidden, 1))

    def _trunk_states(self, sequences: Tensor, mask: Tensor, hidden: Tensor) -> TrunkStates:
        positions = position_ids_from(mask)
        return TrunkStates(sequences, mask, positions, hidden, self.trunk_version())

    def _sample_recorded(
        self, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> tuple[Tensor, TrunkStates | None] | None:
        """`sample` as a GPU does it, by recorded launches; None where it cannot be done."""
        answers = sample_recorded(
            self, self.language_model, self.halves, input_ids, attention_mask, **settings
        )
        if answers is None:
            return None
        tokens, hidden = answers
        sequences = torch.cat([input_ids, tokens], dim=1)
        mask = torch.cat([attention_mask, torch.ones_like(tokens)], dim=1)
        return sequences, None if hidden is None else self._trunk_states(sequences, mask, hidden)

    def _sample_with_generate(self, input_ids: Tensor, **settings: Any) -> Tensor:
        """`sample` for families whose caches are like no others: by transformers' own loop."""
        pure = {"do_sample": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
        with without_preferences(self.language_model):
            return self.language_model.generate(input_ids=input_ids, **pure, **settings)

    def start_values_at(self, value: float) -> None:
        """Make every value this one, until training changes it.

        A head with random weights starts with noise of the size of the scores, and the first steps'
        advantages are made of that. A constant that is near their mean starts with the plain
        difference to it.
        """
        with torch.no_grad():
            self.v_head.weight.zero_()
            self.v_head.bias.fill_(value)

    def trunk_version(self) -> int:
        """Changes when frozen weights are written to, as by load_state_dict."""
        return trunk_version(self.split.trunk)

    def generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """`transformers`' own generate, on the language model."""
        return self.language_model.generate(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Passed on, as in TRL, and as there to no effect: a line in the log says so."""
        logger.info(
            "gradient checkpointing is on, and saves nothing: models checkpoint only in training "
            "mode, and PPO runs them in evaluation mode; use a smaller mini_batch_size"
        )
        self.language_model.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Passed on."""
        self.language_model.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        """Passed on; without checkpointing nothing needs it."""
        self.language_model.enable_input_require_grads()

    def save_pretrained(
        self,
        folder: str | Path,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        merge: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save an ordinary checkpoint folder in float32, and the value head in a file beside it.

        Of a LoRA policy its adapter alone, as PEFT saves it; with `merge=True` an ordinary
        checkpoint, the adapter in its weights. The weights come first: a generation config that
        transformers refuses costs a warning.

        Args:
            push_to_hub: upload it as well, to `repo_id` or else under the folder's name.
            kwargs: for `save_pretrained` of transformers or PEFT, `max_shard_size` for instance.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        if self.is_peft_model and not merge:
            lora.save(self.pretrained_model, folder, **kwargs)
        elif self.is_peft_model:
            _save_checkpoint(lora.merged(self.pretrained_model), folder, **kwargs)
        else:
            _save_checkpoint(self.pretrained_model, folder, **kwargs)
        if not self.is_peft_model or merge:
            lora.remove(folder)
        save_file(
            {k: v.contiguous().cpu() for k, v in self.v_head.state_dict().items()},
            folder / VALUE_HEAD_FILE,
        )
        if push_to_hub:
            upload(folder, repo_id or folder.name)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the policy with its value head; `kwargs` as in `upload`. Returns its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, **kwargs)

    def freeze_lowest_layers(self, k: int | float) -> None:
        """Freeze the embeddings and the lowest k layers, and split the model there if that can be.

        What is above, and the value head, stays trainable: see `trunk.freeze_below`. Of a LoRA
        policy, whose layers are all frozen, it is the adapter of the lowest k that is.

        Args:
            k: their number, or their share of all layers, as 0.6.

        Raises:
            ModelError: if the model has not k layers, or they form no list.
        """
        number = layers_of_share(self.language_model, k) if 0 < k < 1 else int(k)
        if self.is_peft_model:
            freeze_adapters_below(self.language_model, number)
        else:
            self.halves = freeze_below(self.language_model, number)
        self.num_shared_layers = number


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str = "Upload a policy trained with PPO",
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Put a folder's files into a model repository of the hub, made if need be; its address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return str(
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    )


def _save_checkpoint(model: PreTrainedModel, folder: Path, **kwargs: Any) -> None:
    """The model in float32, as transformers saves it, with `kwargs` for it."""
    # A tied head and its embedding stay one tensor, which is then saved once.
    converted: dict[int, Tensor] = {}
    weights = {
        name: converted.setdefault(tensor.data_ptr(), tensor.float())
        for name, tensor in model.state_dict().items()
    }
    dtype, sampling = model.config.dtype, model.generation_config
    try:
        model.generation_config = _writable(sampling)
        model.save_pretrained(folder, state_dict=weights, **kwargs)
        # transformers wrote the dtype of the model in memory, to which a load would convert.
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
    finally:
        model.config.dtype, model.generation_config = dtype, sampling


def _writable(generation_config: Any) -> Any:
    """A copy that transformers agrees to write: it refuses a temperature without do_sample."""
    if generation_config is None:
        return None
    for change in ({}, {"do_sample": True}):
        written = copy.deepcopy(generation_config)
        vars(written).update(change)
        try:
            written.validate(strict=True)
            return written
        except ValueError:
            continue
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    return type(generation_config)(**{k: getattr(generation_config, k) for k in special})


def _resolve_base(folder: Path, name: str, revision: str, **download: Any) -> Path:
    """Where the language model of an adapter's folder is."""
    try:
        return resolve(as_source(name, revision), **download)
    except AssetError as error:
        raise AssetError(
            f"the adapter in {folder} is for {name!r}, which is not found here ({error}): "
            f"{lora.BY_HAND}"
        ) from error


def _saved_value_head(folder: Path) -> dict[str, Tensor] | None:
    """A checkpoint folder's value head, from TRL's weights or from a file beside them.

    Ours and LLaMA-Factory's have one name; the latter holds TRL's names of the tensors.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    names = {f"v_head.summary.{name}": name for name in ("weight", "bias")}
    head: dict[str, Tensor] = {}
    if (folder / VALUE_HEAD_FILE).exists():
        saved = load_file(folder / VALUE_HEAD_FILE)
        return {names.get(name, name): tensor for name, tensor in saved.items()}
    if (folder / "value_head.bin").exists():
        saved = torch.load(folder / "value_head.bin", map_location="cpu", weights_only=True)
        return {names.get(name, name): tensor for name, tensor in saved.items()}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            head |= {names[k]: file.get_tensor(k) for k in file.keys() if k in names}  # noqa: SIM118
    for path in sorted(folder.glob("pytorch_model*.bin")) if not head else ():
        weights = torch.load(path, map_location="cpu", weights_only=True)
        head |= {names[k]: weights[k] for k in weights if k in names}
    return head or None


def create_reference_model(
    model: AutoModelForCausalLMWithValueHead,
    num_shared_layers: int | float | None = None,
    pattern: None = None,
) -> AutoModelForCausalLMWithValueHead:
    """The frozen copy of the policy that the KL penalty is measured against.

    That of a LoRA policy takes no memory: it is the same model with its adapter off, or, where the
    adapter was trained before, with a frozen copy of it (see `lora.as_it_is_now`).

    Args:
        model: the policy before training.
        num_shared_layers: None for a full copy of its own. With k, the embeddings and the lowest k
            layers of `model` are frozen *in place*, and the reference uses the very same tensors
            for them: half the memory, and their hidden states are computed once for both (where the
            family allows it, as almost all do). A number between 0 and 1 is a share of the layers.
        pattern: refused; TRL looked for the layers by name.

    Raises:
        ModelError: if k is out of range, or the layers form no list.
    """
    if pattern is not None:
        raise ModelError("pattern is not supported: the layers are found without it, leave it out")
    shared: dict[int, nn.Parameter] = {}
    if num_shared_layers is not None:
        model.freeze_lowest_layers(num_shared_layers)
        # deepcopy does not copy what its memo already holds: these parameters stay one object.
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    if model.is_peft_model and (same := lora.as_it_is_now(model.pretrained_model)) is not None:
        reference = copy.copy(model)
        head = copy.deepcopy(model.v_head).requires_grad_(False)
        reference._modules = {"pretrained_model": same, "v_head": head}
        return reference.eval()
    reference = copy.deepcopy(model, memo=shared)
    return reference.requires_grad_(False).eval()


def set_training_attention(model: PreTrainedModel, device: torch.device) -> None:
    """Eager attention on a CPU: torch's fused one is slow backwards on short sequences there."""
    if device.type == "cpu":
        model.set_attn_implementation("eager")


def shares_trunk(
    model: AutoModelForCausalLMWithValueHead, other: AutoModelForCausalLMWithValueHead
) -> bool:
    """Whether the two models have the same frozen trunk in memory."""
    k = model.num_shared_layers
    return (
        k > 0
        and model.halves is not None
        and k == other.num_shared_layers
        and (
            model.pretrained_model.get_input_embeddings().weight
            is other.pretrained_model.get_input_embeddings().weight
        )
    )
