"""APIs of others than OpenAI's chats, as the same jobs: pure translation, for the gateway.

    body ──▶ body of an OpenAI chat ──parse_call──▶ Call ──one job each──▶ results ──▶ the API's own answer

Requests become OpenAI's, so that one place makes jobs; only the answers have forms of their own. They are made from
`Blocks`: what comes of a job, told in the order in which it comes.
"""
