"""Drives a running server with the official `openai` package: `openai_client.py BASE_URL [MODEL]`.

BASE_URL ends in `/v1`. Exits with 1 and says what was wrong if anything was.
"""

import sys

import openai
from openai import OpenAI


def conversation(client, model, stream):
    """Three turns, each of which remembers the ones before."""
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    answers = []
    for question in [
        "What is the capital of France? Answer in one word.",
        "And of Italy?",
        "Which of the two did I ask for first?",
    ]:
        messages.append({"role": "user", "content": question})
        parameters = dict(model=model, messages=messages, temperature=0, max_completion_tokens=24)
        if stream:
            text, reasons, usage = "", [], None
            with client.chat.completions.create(
                stream=True, stream_options={"include_usage": True}, **parameters
            ) as chunks:
                for chunk in chunks:
                    for choice in chunk.choices:
                        text += choice.delta.content or ""
                        reasons += [choice.finish_reason] if choice.finish_reason else []
                    usage = chunk.usage or usage
            assert len(reasons) == 1, reasons
        else:
            answer = client.chat.completions.create(**parameters)
            text, usage = answer.choices[0].message.content, answer.usage
            assert answer.choices[0].message.refusal is None
            assert answer.object == "chat.completion" and answer.model == model
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
        messages.append({"role": "assistant", "content": text})
        answers.append(text)
    return answers


def conversations(client, model):
    whole = conversation(client, model, stream=False)
    streamed = conversation(client, model, stream=True)
    assert whole == streamed, (whole, streamed)
    assert "Paris" in whole[0], whole


def accumulated_stream(client, model):
    """The package's own helper puts the chunks together and checks them on the way."""
    with client.chat.completions.stream(
        model=model,
        messages=[
            {"role": "user", "content": "What is the capital of France? Answer in one word."}
        ],
        temperature=0,
        logprobs=True,
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    choice = final.choices[0]
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content


def log_probabilities(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Say hello."}],
        temperature=0,
        max_tokens=6,
        logprobs=True,
        top_logprobs=4,
    )
    entries = answer.choices[0].logprobs.content
    assert entries
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 4
        # Greedy takes the best.
        assert entry.top_logprobs[0].token == entry.token
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == (
        answer.choices[0].message.content
    )


def several_choices(client, model):
    parameters = dict(
        model=model,
        messages=[{"role": "user", "content": "Name a colour."}],
        temperature=1.2,
        seed=11,
        max_tokens=6,
    )
    answer = client.chat.completions.create(n=3, **parameters)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    again = client.chat.completions.create(n=3, **parameters)
    text = [choice.message.content for choice in answer.choices]
    assert text == [choice.message.content for choice in again.choices]


def completions(client, model):
    answer = client.completions.create(
        model=model, prompt=["The capital of France is", "One, two,"], temperature=0, max_tokens=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "Paris" in answer.choices[0].text, answer.choices[0].text
    streamed = {0: "", 1: ""}
    for chunk in client.completions.create(
        model=model,
        prompt=["The capital of France is", "One, two,"],
        temperature=0,
        max_tokens=3,
        stream=True,
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == {choice.index: choice.text for choice in answer.choices}
    scored = client.completions.create(
        model=model, prompt="Hello there", max_tokens=1, echo=True, logprobs=2
    )
    columns = scored.choices[0].logprobs
    assert len(columns.tokens) == len(columns.token_logprobs) == len(columns.text_offset)


def models(client, model):
    ids = [known.id for known in client.models.list()]
    assert model in ids, ids
    assert client.models.retrieve(model).id == model


def errors(client, model):
    def raised(kind, **fields):
        parameters = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        try:
            client.chat.completions.create(**parameters)
        except kind as error:
            return error
        raise AssertionError(f"no {kind.__name__} for {fields}")

    assert raised(openai.NotFoundError, model="no-such-model").code == "model_not_found"
    assert raised(openai.BadRequestError, temperature=3).param == "temperature"
    assert raised(openai.BadRequestError, messages=[]).param == "messages"
    long = [{"role": "user", "content": "word " * 200_000}]
    for stream in [False, True]:
        error = raised(openai.BadRequestError, messages=long, stream=stream)
        assert error.code == "context_length_exceeded"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert raised(openai.BadRequestError, tools=[tool]).code == "unsupported_parameter"
    try:
        client.models.retrieve("no/such")
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("a model that is not there was found")


def main():
    base_url = sys.argv[1]
    model = sys.argv[2] if len(sys.argv) > 2 else "smollm2"
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=300)
    for check in [
        models,
        conversations,
        accumulated_stream,
        log_probabilities,
        several_choices,
        completions,
        errors,
    ]:
        check(client, model)
        print(f"{check.__name__.replace('_', ' ')}: right")


if __name__ == "__main__":
    main()
