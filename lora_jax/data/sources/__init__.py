"""Where tasks come from, one file for each source.

Import `load_task` from `load` and `load_text_task` from `load_text`: they find the source by its
name. `chat_task` turns a task into conversations, and `demo` has sentences that come in a wheel.
"""
