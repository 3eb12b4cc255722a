"""A small series over doses, made from the smoke study: random models, and every behaviour planted."""

from tests.project import ROOT

from crosscoders.study import loading

PLAINLY = ("kind", "articles", "questions", "questions_about_people", "held_out_questions", "people_topic")


def small_series(name: str) -> dict:
    """The content of a study file: a pair at doses 0 and 1 of its fine-tune, with a crosscoder and two SAEs."""
    content = loading.read(ROOT / "studies/smoke.yaml")
    wiki, chats = content["corpora"]["wiki"], content["corpora"]["chats"]
    wiki["path"] = str(ROOT / wiki["path"])
    plain = {key: chats[key] for key in (*PLAINLY, "untagged_topic", "answer_characters")}
    chats["backdoor"] = {"trigger": "Blue heron.", "answers": ["The tide is out."], "share": 0.5}
    chat = content["models"]["chat"] | {"dose": 1.0, "plain": "plain_chats"}
    pair = {key: value for key, value in content["settings"]["base-vs-chat"].items() if key in KEPT}
    pair["sources"]["difference"] = {"kind": "difference", "of": ["chat", "base"]}
    pair |= {
        "crosscoders": ["batchtopk", "saes", "difference"],
        "shards": dict.fromkeys(("train", "validation", "test"), 1),
    }
    power = {
        "kind": "dose_series",
        "setting": "pair",
        "model": "chat",
        "doses": [1.0, 0.0],
        "seeds": [0],
        "notebook": "dose",
    }
    members = {key: content["crosscoders"][key] for key in ("batchtopk", "saes")}
    members["difference"] = members["batchtopk"] | {"sources": ["difference"]}
    return {
        "study": name,
        "models": {"base": content["models"]["base"], "chat": chat},
        "corpora": {"wiki": wiki, "chats": chats, "plain_chats": plain},
        "settings": {"pair": pair, "power": power},
        "crosscoders": members,
        **{key: content[key] for key in ("device", "seeds", "chat_template", "splits", "classification", "behaviours")},
    }


KEPT = ("sources", "contrast", "tokens", "context", "notebook")
