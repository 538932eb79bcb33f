"""Writes templates.json: what Python's jinja2 makes of every template with every conversation.

    python3 make.py TEMPLATES_FOLDER

The environment is that of the `transformers` library, which the templates were written for. The outputs are long, so
their lengths and hashes are kept. Needs jinja2 3.1.6.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2026, 3, 7, 9, 5, 3)
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def outcome(template, conversation):
    try:
        text = template.render(
            messages=conversation["messages"],
            tools=conversation.get("tools"),
            documents=None,
            add_generation_prompt=conversation["add_generation_prompt"],
            **SPECIAL_TOKENS,
            **conversation["kwargs"],
        )
    except Exception:  # Templates fail in every way that Python knows.
        return "error"
    data = text.encode()
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:32]}"


def main(folder):
    conversations = json.loads((HERE / "conversations.json").read_text())
    results = {}
    for path in sorted(pathlib.Path(folder).glob("*.jinja")):
        template = environment().from_string(path.read_text())
        results[path.stem] = {name: outcome(template, c) for name, c in conversations.items()}
    (HERE / "templates.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
