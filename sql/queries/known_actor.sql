-- known_actor: the queue of an actor that some worker announced. Caller: submit by name. Rows: (queue) or none.
SELECT queue FROM callboard.actors WHERE name = %s
