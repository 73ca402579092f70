-- known_actors: every actor that any worker ever announced. Caller: reads.actors.
SELECT name, queue, seen_at FROM callboard.actors ORDER BY name
