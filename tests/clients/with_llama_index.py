"""LlamaIndex: chats, streams and embeddings by its OpenAI-like classes."""
# /// script
# dependencies = ["llama-index-llms-openai-like>=0.8,<0.9", "llama-index-embeddings-openai-like>=0.4,<0.5"]
# ///

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model="smollm2",
    api_base="http://127.0.0.1:8080/v1",
    api_key="none",
    is_chat_model=True,
    context_window=2048,
    max_tokens=10,
    temperature=0,
)
print(llm.chat([ChatMessage(role="user", content="Say hi.")]))

embedding = OpenAILikeEmbedding(model_name="smollm2", api_base="http://127.0.0.1:8080/v1", api_key="none")
print(len(embedding.get_query_embedding("blue sky")))
# --- end of what docs/clients.md shows

question = [ChatMessage(role="user", content="Say hi.")]
text = llm.chat(question).message.content
assert "Hello" in text, text
assert "".join(piece.delta or "" for piece in llm.stream_chat(question)) == text
raw = llm.model_copy(update={"is_chat_model": False, "temperature": 0, "max_tokens": 8})
assert "5" in raw.complete("1, 2, 3, 4,").text

one, two = embedding.get_text_embedding_batch(["blue sky", "red wine"])
assert len(one) == len(two) > 100
assert one != two
