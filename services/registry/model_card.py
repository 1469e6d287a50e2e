"""README.md of an imported version: what it is, and how it is used. It holds nothing that the file said of itself."""

from __future__ import annotations

import json

from atelier.diffusion.formats import diffusers_form, word_forms
from atelier.diffusion.formats.foreign import Foreign
from atelier.pb.registry.v1 import registry_pb2 as pb

_HERE = "PATH/TO/THIS/FOLDER"


def imported_card(version: pb.Version, foreign: Foreign) -> str:
    """Markdown with the front matter that model hubs read. The same import has the same card."""
    kinds = [kind for kind, is_there in (("lora", foreign.updates), ("textual_inversion", foreign.tables)) if is_there]
    return f"""---
base_model: {json.dumps(version.base_model.model)}
library_name: diffusers
pipeline_tag: text-to-image
tags: [{", ".join([*kinds, "text-to-image"])}]
---

# Imported adapter

Made elsewhere; it came as {foreign.form}. It works on this base model only: `{version.base_model.digest}`.

{_contents(foreign)}

## Use with diffusers

```python
{_usage(foreign)}
```
"""


def _contents(foreign: Foreign) -> str:
    lines = []
    for component, updates in sorted(foreign.updates.items()):
        rank = max(update.rank for update in updates.values())
        lines.append(f"- `{component}`: updates of {len(updates)} layers, of rank {rank} at most")
    for key, table in sorted(foreign.tables.items()):
        lines.append(f"- `{key}`: {len(table)} vectors, for the tokens {_tokens(foreign)}")
    return "\n".join(lines)


def _usage(foreign: Foreign) -> str:
    """For Stable Diffusion's pipelines; Stable Cascade's have no such methods."""
    lines = []
    if foreign.updates:
        lines.append(f'pipeline.load_lora_weights("{_HERE}", weight_name="{diffusers_form.FILE_NAME}")')
    if foreign.tables:
        lines.append(f'vectors = safetensors.torch.load_file("{_HERE}/{word_forms.FILE_NAME}")')
        lines.append(f"tokens = {json.dumps(_tokens(foreign).split())}")
    for key, suffix in (("clip_l", ""), ("clip_g", "_2" if len(foreign.tables) > 1 else "")):
        if key in foreign.tables:
            lines.append(
                f'pipeline.load_textual_inversion(list(vectors["{key}"]), token=tokens, '
                f"text_encoder=pipeline.text_encoder{suffix}, tokenizer=pipeline.tokenizer{suffix})"
            )
    return "\n".join(lines)


def _tokens(foreign: Foreign) -> str:
    count = len(next(iter(foreign.tables.values())))
    return " ".join(f"<s{index}>" for index in range(count))
