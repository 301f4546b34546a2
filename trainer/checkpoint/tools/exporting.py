"""A serving bundle: a trained model with its code table in one folder, which looks like a run's and can be moved.

    OUT/
        config.yaml                  of the run, if it had one
        checkpoints/step-XXXXXXXX/   a base without optimizer states
        codes/                       a copy of the code table

The event store is not in it: whoever evaluates names it, as `store=…`.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from common.config import load_resolved, to_yaml
from common.errors import InputError
from common.files import write_folder_aside, write_text_atomically
from common.progress import format_count
from common.storage import LocalStorage, Storage
from semantic_ids.codes.code_table import CodeTable
from serving.checkpoints.chain import Link
from serving.checkpoints.manifest import MANIFEST, Manifest, encode_manifest
from serving.checkpoints.model import BUNDLED_CODES, MODEL, code_table_path, find_chain
from serving.checkpoints.restore import open_chain
from trainer.checkpoint.tools.folding import Folding
from trainer.config import TrainConfig

CONFIG = "config.yaml"


def export(storage: Storage, run: Path | None, to: str, which: str, codes: str = "") -> dict[str, Any]:
    """Write a bundle, whole or not at all, and say what is in it.

    Args:
        storage: the checkpoints.
        run: the run's folder; None where only its checkpoints are known.
        to: path of the bundle; must not hold anything yet.
        which: `best`, `latest` or the name of the checkpoint.
        codes: the code table, if it has moved since training.

    Raises:
        InputError: `to` holds something, or is no local path; there is no such checkpoint, or it is damaged; the code
            table is not the one that the model was trained with.
    """
    if "://" in to:
        raise InputError(f"{to}: a bundle is written to a local folder; export to one, and upload it")
    out = Path(to)
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds something already; remove it, or export to another folder")
    chain = find_chain(storage, which)
    table = _code_table(storage, chain[-1], code_table_path(run, chain[-1].manifest, codes))
    with write_folder_aside(out) as aside:
        manifest = _write_base(storage, chain, LocalStorage(aside / "checkpoints"))
        shutil.copytree(table.path, aside / BUNDLED_CODES)
        CodeTable.open_alone(aside / BUNDLED_CODES)  # as whole as it was
        if run and (run / CONFIG).is_file():
            write_text_atomically(aside / CONFIG, _config(run / CONFIG))
    name = chain[-1].name
    print(f"{out}: {name} for serving, {format_count(manifest.size)}B, with code table {table.fingerprint}")
    return {"out": str(out), "name": name, "bytes": manifest.size, "codes_fingerprint": table.fingerprint}


def _code_table(storage: Storage, link: Link, path: Path) -> CodeTable:
    table, trained = CodeTable.open_alone(path), link.manifest.codes_fingerprint
    if table.fingerprint != trained:
        raise InputError(
            f"{path}: is the code table {table.fingerprint}, but {storage.where(link.name)} was trained with "
            f"{trained}; give that one as --codes"
        )
    return table


def _write_base(storage: Storage, chain: list[Link], target: Storage) -> Manifest:
    with open_chain(storage, chain) as reader:
        folding = Folding(reader, target, "bundle", training=False)
        manifest = folding.write_tables()
        model = {name: value for name, value in reader.dense().items() if name.startswith(MODEL)}
        dense = folding.write_tensors("dense", model)
    manifest = dataclasses.replace(manifest, dense=dense, files=dict(folding.files), codes=BUNDLED_CODES)
    target.replace(f"{chain[-1].name}/{MANIFEST}", encode_manifest(manifest))
    return manifest


def _config(path: Path) -> str:
    """The run's configuration, whose checkpoints now lie beside it."""
    config = load_resolved(TrainConfig, path)
    return to_yaml(dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, path="")))
