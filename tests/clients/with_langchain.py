"""LangChain: chats, streams, tools, structured output and embeddings by langchain-openai."""
# /// script
# dependencies = ["langchain-openai>=1.7,<2"]
# ///

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

chat = ChatOpenAI(model="smollm2", base_url="http://127.0.0.1:8080/v1", api_key="none", max_tokens=10, temperature=0)
print(chat.invoke("Say hi.").content)

# Without check_embedding_ctx_length=False it would send the tokens of a model of OpenAI's.
embeddings = OpenAIEmbeddings(
    model="smollm2", base_url="http://127.0.0.1:8080/v1", api_key="none", check_embedding_ctx_length=False
)
print(len(embeddings.embed_query("blue sky")))
# --- end of what docs/clients.md shows

from langchain_core.tools import tool
from pydantic import BaseModel

answer = chat.invoke("Say hi.")
assert "Hello" in answer.content, answer
assert answer.usage_metadata["output_tokens"] <= 10
assert "".join(piece.content for piece in chat.stream("Say hi.")) == answer.content


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return "Rain all day."


sure = ChatOpenAI(model="smollm2", base_url="http://127.0.0.1:8080/v1", api_key="none", max_tokens=60, temperature=0)
for method in ("json_schema", "function_calling"):
    person = sure.with_structured_output(Person, method=method).invoke("Ann is 31 years old.")
    assert isinstance(person, Person), (method, person)
called = sure.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False).invoke(
    "How is the weather in Oslo?"
)
assert [call["name"] for call in called.tool_calls] == ["weather"], called
assert "city" in called.tool_calls[0]["args"]

one, two = embeddings.embed_documents(["blue sky", "red wine"])
assert len(one) == len(two) > 100
assert one != two
