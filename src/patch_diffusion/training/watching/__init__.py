"""What a run tells of itself: its log, a page, other tools."""
