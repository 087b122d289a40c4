import os

import pytest

from graphs.base.errors import UgsepError
from quant.policy import Policy, Rule, policy_document, policy_from, read_policy


def test_policies_read_back_and_name_their_mistakes(tmp_path) -> None:
    policy = Policy((Rule("user:a.*", "fp16", "why"), Rule("b", "fp32")), "int8", 64, True)
    assert policy_from(policy_document(policy)) == policy
    assert policy.precision_of("user", "a.x") == ("fp16", "why")
    assert policy.precision_of("item", "a.x") == ("int8", "")
    assert policy.precision_of("item", "b") == ("fp32", "policy 'b'")
    for document, message in (
        ({"weigths": []}, "unknown setting 'weigths', did you mean 'weights'"),
        ({"weights": [{"glob": "a", "precision": "int4"}]}, r"weights\[0\].precision is .int4., not one of"),
        ({"weights": ["a"]}, r"weights\[0\] is .a., not an object"),
        ({"weights": [{"precision": "int8"}]}, r"weights\[0\]: .glob. is missing"),
        ({"weights": {"glob": "a"}}, 'weights is {"glob": "a"}, not a list'),
        ({"keep_fp32_ops": 3}, "keep_fp32_ops is 3, not a list"),
        ({"tables": "no"}, 'tables is "no", not a boolean'),
        ({"block": -1}, "block is -1"),
        ({"default": "fp8"}, 'default is "fp8", not one of int8'),
    ):
        with pytest.raises(UgsepError, match=message):
            policy_from(document)
    path = tmp_path / "p.yaml"
    texts = (("a: [", "is not YAML"), ("- a", "is not a mapping"), ("block: 0\nblock: 8", "'block' is given twice"))
    for text, message in texts:
        path.write_text(text)
        with pytest.raises(UgsepError, match=message):
            read_policy(path)
    with pytest.raises(UgsepError, match="does not exist"):
        read_policy(tmp_path / "none.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UgsepError, match="is a pipe, not a file; give a policy file"):
        read_policy(tmp_path / "pipe.yaml")
