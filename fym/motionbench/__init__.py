"""MotionBench (`fym-motionbench`): metrics of motion transfer, and the certificate of what they see."""
