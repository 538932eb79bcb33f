"""Drives a running server with the official `openai` package: `openai_client.py BASE_URL [MODEL [CALLER]]`.

BASE_URL ends in `/v1`; CALLER is a model whose chat template knows tools. Exits with 1 and says what was wrong if
anything was.
"""

import enum
import json
import sys
from typing import Annotated

import openai
from openai import OpenAI
from pydantic import BaseModel, Field


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
    tool = {"type": "function", "function": {"name": "no spaces", "parameters": {}}}
    assert raised(openai.BadRequestError, tools=[tool]).param == "tools[0].function.name"
    tool = {"type": "custom", "custom": {"name": "f"}}
    assert raised(openai.BadRequestError, tools=[tool]).code == "unsupported_parameter"
    assert raised(openai.BadRequestError, tool_choice="required").param == "tool_choice"
    assert raised(openai.BadRequestError, reasoning_effort="lots").param == "reasoning_effort"
    malformed = {"type": "json_schema", "json_schema": {"name": "n"}}
    for stream in [False, True]:
        error = raised(openai.BadRequestError, response_format=malformed, stream=stream)
        assert error.param == "response_format"
    try:
        client.models.retrieve("no/such")
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("a model that is not there was found")


def function(name, description, /, **properties):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }


CITY = {"type": "string", "maxLength": 24}
WEATHER = function(
    "get_weather", "The weather of a city", city=CITY, unit={"enum": ["celsius", "fahrenheit"]}
)


def tool_calls(client, model):
    parameters = dict(
        model=model,
        messages=[{"role": "user", "content": "What is the weather in Paris, in celsius?"}],
        tools=[WEATHER],
        temperature=0,
    )
    for choice, reason in [
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "get_weather"}}, "stop"),
    ]:
        answer = client.chat.completions.create(tool_choice=choice, **parameters)
        message = answer.choices[0].message
        assert message.content is None and answer.choices[0].finish_reason == reason
        call = message.tool_calls[0]
        assert call.function.name == "get_weather" and call.id.startswith("call_")
        assert json.loads(call.function.arguments) == {"city": "Paris", "unit": "celsius"}

        # As most clients put the pieces together.
        calls, reasons = {}, []
        for chunk in client.chat.completions.create(tool_choice=choice, stream=True, **parameters):
            for delta in chunk.choices[0].delta.tool_calls or []:
                known = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                known["id"] += delta.id or ""
                known["name"] += delta.function.name or ""
                known["arguments"] += delta.function.arguments or ""
            reasons += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
        assert reasons == [reason], reasons
        assert calls[0]["name"] == "get_weather" and len(calls[0]["id"]) == len(call.id)
        assert calls[0]["arguments"] == call.function.arguments

        # As the package itself does.
        with client.chat.completions.stream(tool_choice=choice, **parameters) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion().choices[0].message
        assert final.tool_calls[0].function.parsed_arguments["city"] == "Paris"
    none = client.chat.completions.create(tool_choice="none", max_tokens=30, **parameters)
    assert none.choices[0].message.tool_calls is None and none.choices[0].message.content


class Kind(enum.Enum):
    CITY = "city"
    RIVER = "river"


class Place(BaseModel):
    name: str = Field(max_length=20)
    country: str = Field(max_length=20)
    kind: Kind
    sights: list[Annotated[str, Field(max_length=20)]] = Field(max_length=2)


def structured_output(client, model):
    parameters = dict(
        model=model,
        messages=[{"role": "user", "content": "What is Paris? Name a sight."}],
        temperature=0,
        max_tokens=200,
        response_format=Place,
    )
    place = client.chat.completions.parse(**parameters).choices[0].message.parsed
    assert isinstance(place, Place) and isinstance(place.kind, Kind), place
    with client.chat.completions.stream(**parameters) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == place
    choice = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Is Paris a city or a river?"}],
        temperature=0,
        extra_body={"grammar": {"choice": ["city", "river"]}},
    )
    assert choice.choices[0].message.content in ["city", "river"]
    cut = dict(parameters, max_tokens=3)
    try:
        client.chat.completions.parse(**cut)
    except openai.LengthFinishReasonError:
        pass
    else:
        raise AssertionError("an answer that was cut was taken for a whole one")


def agent(client, model):
    """Three calls in a row, each of which needs the result of the one before, and then a text."""
    steps = [
        function("find_user", "Finds the id of a user by name", name={"enum": ["Ada", "Bob"]}),
        function("find_order", "Finds the last order of a user by id", user_id={"enum": [17, 23]}),
        function("track", "Tells where an order is", order={"enum": ["A-100", "B-200"]}),
    ]
    results = {"find_user": {"id": 17}, "find_order": {"order": "A-100"}, "track": {"place": "Oslo"}}
    arguments = [{"name": "Ada"}, {"user_id": 17}, {"order": "A-100"}]
    messages = [
        {"role": "system", "content": "Use one tool after another."},
        {"role": "user", "content": "Where is the last order of Ada?"},
    ]
    called = []
    for step in steps:
        # Which one is next is a matter of the model's size; that it is called as it must be is ours.
        allowed = [{"type": "function", "function": {"name": step["function"]["name"]}}]
        answer = client.chat.completions.create(
            model=model,
            messages=messages,
            tools=steps,
            tool_choice={
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": allowed},
            },
            parallel_tool_calls=False,
            temperature=0,
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        message = answer.choices[0].message
        [call] = message.tool_calls
        called.append((call.function.name, json.loads(call.function.arguments)))
        messages.append(message)
        content = json.dumps(results[call.function.name])
        messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    assert called == list(zip(results, arguments)), called
    ids = [message.tool_calls[0].id for message in messages if not isinstance(message, dict)]
    assert len(set(ids)) == 3, ids
    for choice in ["none", "auto"]:
        answer = client.chat.completions.create(
            model=model, messages=messages, tools=steps, tool_choice=choice, temperature=0
        )
        if choice == "none" or answer.choices[0].finish_reason == "stop":
            assert "Oslo" in answer.choices[0].message.content, answer.choices[0].message


def reasoning(client, model):
    """A model that does not think answers as ever, whatever it is asked for."""
    parameters = dict(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=20,
    )
    plain = client.chat.completions.create(**parameters)
    for effort in ["none", "low", "high"]:
        answer = client.chat.completions.create(reasoning_effort=effort, **parameters)
        assert answer.choices[0].message.content == plain.choices[0].message.content
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def embeddings(client, model):
    """The client asks for base64 and decodes it; asked for floats it passes them on."""
    texts = ["A cat sleeps on the sofa.", "The kitten naps on the couch.", "Stock markets fell sharply today."]
    answer = client.embeddings.create(model=model, input=texts)
    assert [one.index for one in answer.data] == [0, 1, 2]
    vectors = [one.embedding for one in answer.data]
    assert all(len(vector) == 384 for vector in vectors)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert all(abs(dot(vector, vector) - 1) < 1e-4 for vector in vectors)
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2]) + 0.3
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20
    floats = client.embeddings.create(model=model, input=texts[0], encoding_format="float").data[0].embedding
    assert max(abs(a - b) for a, b in zip(floats, vectors[0])) < 1e-6
    short = client.embeddings.create(model=model, input=texts[:1], dimensions=128).data[0].embedding
    assert len(short) == 128 and abs(dot(short, short) - 1) < 1e-4
    try:
        client.embeddings.create(model="smollm2", input="a")
        raise AssertionError("a model that writes has made embeddings")
    except openai.BadRequestError as error:
        assert error.code == "model_not_supported", error


def main():
    base_url = sys.argv[1]
    model = sys.argv[2] if len(sys.argv) > 2 else "smollm2"
    caller = sys.argv[3] if len(sys.argv) > 3 else "qwen2.5-coder-0.5b"
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=300)
    for check in [
        models,
        conversations,
        accumulated_stream,
        log_probabilities,
        several_choices,
        completions,
        errors,
        structured_output,
        reasoning,
    ]:
        check(client, model)
        print(f"{check.__name__.replace('_', ' ')}: right")
    for check in [tool_calls, structured_output, agent]:
        check(client, caller)
        print(f"{check.__name__.replace('_', ' ')} with {caller}: right")
    embeddings(client, "minilm")
    print("embeddings: right")


if __name__ == "__main__":
    main()
