"""Every chart of the toolkit, drawn by matplotlib: functions give figures, which `to_svg` and `to_png` write."""
