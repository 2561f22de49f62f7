"""What an adapter's page says of a training."""

import json
from pathlib import Path

from assets import adapter_page
from ftaas_pipelines.store import Store


def test_a_training_whose_groups_are_all_alike_is_said_to_have_learnt_nothing(tmp_path: Path) -> None:
    for alike, reward, passed in (
        (1.0, 0.02, False),
        (0.95, 0.5, False),
        (0.4, 0.5, True),
        (0.4, 0.0, False),
    ):
        with Store(tmp_path).create("adapter", f"{alike} {reward}") as draft:
            draft.content.update(alike=alike, reward=reward)  # what lies beside is no part of the digest
            rows = [{"step": i, "reward": reward * i / 8, "groups_alike": alike} for i in range(8)]
            (draft.path / "beside").mkdir()
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (draft.path / "beside" / "metrics.jsonl").write_text(text, encoding="utf-8")
        found, said = adapter_page.learnt(draft.made)
        assert found is passed and ("init_from" in said) is (alike > 0.9), said
