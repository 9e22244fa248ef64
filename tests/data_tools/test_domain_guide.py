"""docs/domain.md, command by command in a shell, on a small folder; docs/scale.md, whose tables a script prints."""

import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks import scale
from data_tools.tokens.tokenizer_training import train_tokenizer
from huatuo_jax.data.plan import Plan
from tests.support.fault_server import FaultServer

LAW = "原告与被告签订房屋租赁合同第{0}号后，被告拒付租金{1}元。法院认为其行为构成违约，判决被告支付违约金并承担诉讼费用。"
STATUTES = [
    "承租人未经出租人同意转租，造成租赁物损失的，应当向出租人赔偿损失并支付违约金。",
    "保证人在保证期间内拒绝履行保证债务的，与债务人承担连带清偿责任，债权人可以向法院起诉。",
    "用人单位拖欠劳动报酬，经催告仍不支付的，按应付金额加付赔偿金，劳动合同可以解除。",
    "因共同危险行为造成损害，不能确定具体侵权人的，由行为人承担连带侵权责任，原告无须证明谁是侵权人。",
    "买受人未按约定受领标的物，致使标的物毁损灭失的，自违反合同约定时起承担风险，不得请求违约金。",
]
OTHER = "主队在联赛第{0}轮比赛中以{1}比一战胜来访的客队，现场球迷欢呼雀跃。教练在赛后表示对全体队员的表现非常满意。"
QUESTION = "甲向乙借款十万元，约定三年后归还，到期后乙一直没有催要，四年后乙起诉，甲以时效届满抗辩，法院应当如何处理本案"
PRELUDE = """
set -e
pip() {{ true; }}
huatuo-data() {{ {python} -c 'import sys; from data_tools.cli import main; sys.exit(main())' "$@"; }}
"""
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 430,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def desk(tmp_path):
    """A folder with what the guide asks for."""
    statutes = tmp_path / "raw" / "statutes"
    statutes.mkdir(parents=True)
    for number, statute in enumerate(STATUTES):
        (statutes / f"{number}.txt").write_text(statute, encoding="utf-8")
    write_lines(tmp_path / "raw" / "cases.jsonl", [{"text": LAW.format(i, 137 * i), "source": "cases"} for i in range(30)])
    web = [{"text": (LAW if i % 3 == 0 else OTHER).format(900 + i, 31 * i), "source": "web"} for i in range(60)]
    write_lines(tmp_path / "raw" / "web.jsonl", [*web, {"text": f"例题：{QUESTION}？原告与被告各执一词。", "source": "web"}])
    labelled = [{"text": (LAW if i % 2 else OTHER).format(500 + i, 11 * i), "law": bool(i % 2)} for i in range(80)]
    write_lines(tmp_path / "labelled.jsonl", labelled)
    write_lines(tmp_path / "bar_exam.jsonl", [{"question": QUESTION, "options": {"A": "驳回", "B": "支持"}}])
    dialogues = [{"turns": [f"第{i}条怎么理解？", f"第{i}条是说要守约。"], "source": "sft"} for i in range(20)]
    write_lines(tmp_path / "sft.jsonl", [*dialogues, {"turns": [QUESTION, "驳回。"], "source": "sft"}])
    (tmp_path / "base-model").mkdir()
    (tmp_path / "base-model" / "config.json").write_text(json.dumps(LLAMA))
    train_tokenizer((LAW + OTHER + "，".join(STATUTES)).split("，"), 430, tmp_path / "base-model" / "tokenizer.model")
    return tmp_path


def test_every_command_of_the_domain_guide_runs(desk, repository):
    text = (repository / "docs" / "domain.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    commands = "".join(blocks)
    assert commands.count("huatuo-data ") == 10 and "http://localhost:8000/v1" in commands
    with FaultServer(model="Qwen3-8B") as server:
        script = PRELUDE.format(python=sys.executable) + commands.replace("http://localhost:8000/v1", server.url)
        environment = os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(["bash", "-c", script], cwd=desk, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert {arrival.language for arrival in server.arrivals} == {"zh"}
        assert all("法律" in arrival.prompt and "一位资深律师" in arrival.prompt for arrival in server.arrivals)
    report = json.loads((desk / "passages" / "report.json").read_text(encoding="utf-8"))
    assert report["sources"]["web"]["extracted"]["texts"] == 21, "the third that is law, and the exam question"
    assert report["drops"]["holds an exam question"]["texts"] == 1
    assert set(Plan.load(desk / "data" / "plan").manifest["sources"]) >= {"web", "cases", "statutes", "sft"}


def test_the_page_on_a_terabyte_shows_what_the_script_prints(repository, capsys):
    text = (repository / "docs" / "scale.md").read_text(encoding="utf-8")
    scale.main([])
    for line in filter(None, capsys.readouterr().out.splitlines()):
        assert line in text


def test_core_hours_are_bytes_by_rate():
    rates = dict.fromkeys(scale.STEP_OF, (10.0, 5.0))
    shares = {"raw": 1.0, "extracted": 0.5, "cleaned": 0.0, "deduplicated": 0.0}
    hours = scale.core_hours(rates, shares, megabytes=36_000, chinese=0.5)
    assert hours["extract"] == pytest.approx(36_000 * (0.5 / 10 + 0.5 / 5) / 3600)
    assert hours["clean"] == pytest.approx(hours["extract"] / 2) and hours["near: MinHash"] == 0
