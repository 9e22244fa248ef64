"""The whole job in miniature: 5 M parameters, a corpus of 104 passages and 65 dialogues, CPU.

Hardware: 2 CPU cores. Time: under 5 minutes. Expected loss: 8.3 → below 0.1 on SFT at the end.
"""

from huatuo_jax.config import (
    CheckpointConfig,
    ComputeConfig,
    DataConfig,
    LoggingConfig,
    OptimizerConfig,
    Question,
    RunConfig,
    SourceMix,
)
from huatuo_jax.mixtures import PAPER
from huatuo_jax.models.presets import preset

DOMAIN_PASSES, SFT_PASSES = 36, 24
"""The paper draws domain records once and SFT three times; so small a model needs many more passes to answer by heart."""


def config() -> RunConfig:
    """One-stage training of a tiny model on `examples/quickstart`."""
    return RunConfig(
        name="quickstart",
        model=preset("quickstart"),
        data=DataConfig(
            tokens="runs/quickstart/data/tokens",
            plan="runs/quickstart/data/plan",
            mixture={
                name: SourceMix(mix.priority, SFT_PASSES if name == "sft" else DOMAIN_PASSES) for name, mix in PAPER.items()
            },
            sequence_length=512,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, beta2=0.98, warmup=0.03),
        compute=ComputeConfig(dtype="float32", remat="none", loss_chunks=1, unroll=4),
        checkpoint=CheckpointConfig(every=200),
        logging=LoggingConfig(every=5, eval_every=100),
        batch_size=4,
        questions=(
            Question(
                "高血压患者每天可以吃多少盐？",
                expected="食盐摄入建议每天不超过5克，大约一平茶匙。还要注意酱油、咸菜、火腿等食物里的隐形盐。可以用葱姜蒜、醋和柠檬汁调味，肾功能正常者可考虑低钠盐。",
                source="sft",
            ),
            Question(
                "请介绍一下足三里穴的定位与主治。",
                expected="足三里为足阳明胃经的合穴，位于小腿外侧，犊鼻下三寸，胫骨前嵴外一横指处。主治胃痛、呕吐、腹胀、泄泻、便秘等胃肠病证，以及下肢痿痹和虚劳诸证。一般直刺一至二寸，亦可用灸法，为强壮保健要穴。",
                source="medical_books_cn",
            ),
            Question(
                "我想了解阿司匹林的用法与注意事项，能详细说说吗？",
                expected="阿司匹林又名乙酰水杨酸，为环氧合酶抑制剂，具有解热、镇痛、抗炎和抗血小板作用。小剂量用于冠心病和缺血性卒中的二级预防。常见不良反应为胃肠道刺激和出血。活动性溃疡、阿司匹林哮喘及血友病患者禁用。",
                source="medical_encyclopedia_cn",
            ),
        ),
    )
