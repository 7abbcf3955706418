"""Each store's migrations are one line: one head, a number for each, none of them twice."""

from __future__ import annotations

import pathlib
import re

import alembic.config
import pytest
from alembic.script import ScriptDirectory

from appliance.store.database import MIGRATIONS

SCHEMAS = ("coordinator", "signer")


def wrongs(schema: str, versions: pathlib.Path) -> list[str]:
    """What is wrong with the migrations in `versions`."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("version_locations", str(versions))
    config.set_main_option("path_separator", "newline")
    scripts = ScriptDirectory.from_config(config)
    found = [] if len(scripts.get_heads()) == 1 else [f"heads: {scripts.get_heads()}"]
    files = sorted(path.name for path in versions.glob("*.py"))
    found += [name for name in files if not re.fullmatch(schema[0] + r"[0-9]{4}_[a-z0-9_]+\.py", name)]
    numbers = [name[:5] for name in files]
    if numbers != [f"{schema[0]}{number:04}" for number in range(1, len(files) + 1)]:
        found.append(f"numbers: {numbers}")
    for script in scripts.walk_revisions():
        name, number = pathlib.Path(script.path).name, int(script.revision[1:])
        expected = f"{schema[0]}{number - 1:04}" if number > 1 else None
        if name[:5] != script.revision or script.down_revision != expected:
            found.append(f"{name}: revision {script.revision} after {script.down_revision}")
    return found


@pytest.mark.parametrize("schema", SCHEMAS)
def test_migrations_have_one_head_and_a_number_each(schema: str) -> None:
    assert wrongs(schema, MIGRATIONS / schema) == []


def test_a_second_head_and_a_number_that_is_there_twice_are_found(tmp_path: pathlib.Path) -> None:
    for name, number, after in (
        ("c0001_a", "c0001", None),
        ("c0002_b", "c0002", "c0001"),
        ("c0002_c", "c0003", "c0001"),
    ):
        text = f"revision = {number!r}\ndown_revision = {after!r}\n"
        (tmp_path / f"{name}.py").write_text(text)
    told = " ".join(wrongs("coordinator", tmp_path))
    assert "heads:" in told
    assert "numbers:" in told
    assert "c0002_c.py: revision c0003 after c0001" in told
