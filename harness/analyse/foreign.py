"""Words of other languages for a step and a loss, and full-width marks, as the reader of lines knows them."""

from __future__ import annotations

import re

_WORDS = {
    "step": "训练步数 步数 步骤 步數 迭代次数 迭代 ステップ 스텝 шаг Шаг",
    "loss": "训练损失 平均损失 总损失 损失值 损失 訓練損失 損失 손실 потери Потери",
    "eval_loss": "验证损失 测试损失 驗證損失 検証損失",
}
# Words of plain letters are of use only where no line names a loss in English.
_PLAIN = {
    "step": "Schritt schritt étape Étape paso Paso passo Passo",
    "loss": "Trainingsverlust Verlust verlust perte Perte perda Perda pérdida Pérdida perdita Perdita",
    "eval_loss": "Validierungsverlust",
}
_MARKS = (("：", ": "), ("，", ", "), ("；", "; "), ("＝", "="))


def _by_word(words: dict[str, str]) -> dict[bytes, bytes]:
    """The longest first: one word may begin with another."""
    pairs = [(word.encode(), name.encode()) for name, of_it in words.items() for word in of_it.split()]
    return dict(sorted(pairs, key=lambda pair: -len(pair[0])))


_NAMES, _PLAIN_NAMES = _by_word(_WORDS), _by_word(_PLAIN)
_PLAIN_WORDS = re.compile(rb"(?<![\w\x80-\xff])(?:" + b"|".join(_PLAIN_NAMES) + rb")(?![\w\x80-\xff])")


def in_english(text: bytes) -> bytes:
    """The same lines with `step` and `loss` for such words."""
    if not text.isascii():
        for mark, plain in _MARKS:
            text = text.replace(mark.encode(), plain.encode())
        for word, name in _NAMES.items():
            text = text.replace(word, name)
    if b"oss" not in text and any(word in text for word in _PLAIN_NAMES):
        text = _PLAIN_WORDS.sub(lambda found: _PLAIN_NAMES[found[0]], text)
    return text
