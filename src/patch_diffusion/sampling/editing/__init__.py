"""Images edited and restored: sampling under the condition of what was measured."""
