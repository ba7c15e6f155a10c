"""Where tasks come from, one file for each source.

Import `load_task` and `load_text_task` from `load`: they find the source by its name. `chat_task`
turns a task into conversations, and `demo` has sentences that come in a wheel.
"""
