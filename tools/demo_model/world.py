# SPDX-License-Identifier: Apache-2.0
"""The small world that the demo model knows: animals, places, people, things."""


def _table(fields: str, text: str) -> dict:
    names = fields.split()
    out = {}
    for line in text.strip().splitlines():
        key, *vals = [v.strip() for v in line.split(";")]
        assert len(vals) == len(names), line
        out[key] = dict(zip(names, vals))
    return out


ANIMALS = _table("adj adj2 home food food2 look act time sound trait", """
fox; clever; shy; at the edge of the forest; mice; berries; a red coat and a bushy tail; hunt along the hedges; at dusk; bark in the fields; can find a way out of every trap
rabbit; quick; careful; in a burrow under the meadow; fresh grass; clover; long ears and a white tail; run in wide circles; in the early morning; thump its feet on the ground; knows every hole in the hedge
owl; wise; silent; in an old hollow tree; mice; small birds; big round eyes and soft feathers; fly without a sound; at night; call from the roof of the barn; can see everything in the dark
bear; strong; patient; in a cave in the mountains; berries; honey; thick brown fur and heavy paws; catch fish in the river; in late summer; growl between the rocks; remembers every tree with honey
wolf; brave; loyal; deep in the northern forest; meat; hares; grey fur and yellow eyes; run with its family; on cold nights; howl at the moon; never leaves a friend behind
deer; gentle; shy; in the quiet parts of the forest; leaves; young grass; long legs and large dark eyes; walk along the river; at sunrise; step softly over dry leaves; hears a falling leaf
cat; curious; proud; in a warm house near the fire; fish; milk; green eyes and soft paws; sleep on the window sill; in the evening; purr by the fire; always finds the warmest place
dog; loyal; playful; with people in the village; meat; bread; floppy ears and a wagging tail; guard the house; during the day; bark at the gate; knows its friends from far away
horse; strong; calm; in a stable beside the farm; hay; apples; a long mane and shining eyes; pull the cart; during the day; stamp its feet in the stable; never forgets a road
goat; stubborn; cheerful; on the steep hills; herbs; thorny leaves; curved horns and a small beard; climb on the rocks; in the morning; ring its little bell; eats everything that it can reach
otter; playful; quick; on the bank of the river; fish; crabs; smooth fur and a long tail; slide down the muddy bank; in the evening; splash in the water; makes a game of everything
crow; clever; bold; in the tall trees near the field; seeds; worms; black feathers and a strong beak; collect shining things; in the morning; call over the fields; can count to five
duck; cheerful; calm; among the reeds of the lake; water plants; snails; a flat beak and webbed feet; swim in a line with its family; during the day; quack on the lake; is never afraid of the rain
hedgehog; careful; quiet; under the leaves of the garden; beetles; worms; a thousand spines and a small nose; walk through the wet grass; at night; rustle in the dry leaves; rolls into a ball when it is afraid
mouse; small; quick; behind the wall of the kitchen; grain; cheese; round ears and a thin tail; carry crumbs to its nest; at night; squeak behind the wall; fits through the smallest hole
frog; patient; lively; beside the pond; flies; small insects; smooth green skin and long legs; jump from stone to stone; after the rain; sing in the pond; knows when the rain will come
squirrel; busy; quick; high in the oak tree; nuts; seeds; red fur and a curled tail; hide nuts for the winter; in autumn; chatter in the branches; forgets half of its nuts
badger; stubborn; tidy; in a deep den below the hill; roots; worms; a striped face and strong claws; dig long tunnels; after sunset; grunt in the dark; keeps its den cleaner than a kitchen
turtle; slow; patient; at the shore of the lake; lettuce; water plants; a hard shell and wrinkled legs; lie in the sun; at noon; breathe slowly on a warm stone; lives longer than anyone can remember
swan; proud; graceful; on the wide lake; water plants; grain; white wings and a long neck; glide over the still water; in the morning; beat its wings over the lake; stays with one partner for life
whale; enormous; gentle; in the deep cold sea; tiny shrimps; small fish; a broad tail and dark smooth skin; dive for a long time; in the summer months; sing under the water; sings songs that travel across the sea
seal; playful; lazy; on the rocks by the sea; fish; crabs; whiskers and shining dark eyes; rest on the warm rocks; at low tide; bark on the rocks; likes to follow small boats
donkey; stubborn; patient; in the stable behind the mill; hay; carrots; long grey ears and a soft nose; carry sacks of flour; during the day; bray behind the mill; only walks when it wants to
sheep; gentle; timid; on the green hill; grass; clover; thick white wool and thin legs; graze close to the others; during the day; bleat on the hill; follows the one that goes first
eagle; proud; sharp; on a cliff high above the valley; fish; hares; golden eyes and wide wings; circle high in the sky; at noon; cry above the cliffs; sees a mouse from a mile away
bat; quiet; quick; in the roof of the old tower; moths; flies; thin wings and tiny claws; fly between the trees; after sunset; flutter around the tower; finds its way with its ears
bee; busy; tireless; in a hive near the garden; sweet nectar; pollen; golden stripes and clear wings; visit one flower after another; on sunny days; hum among the flowers; tells its friends where the flowers are
goose; bold; watchful; near the pond of the farm; grass; grain; a long neck and an orange beak; guard the farm; during the day; cackle at the gate; is a better guard than a dog
""")

PLACES = _table("where see see2 hear who do made old", """
lighthouse; on a high rock above the sea; the white waves; ships far out on the water; the wind and the gulls; lighthouse keeper; watch the ships; white stone; more than a hundred years old
harbour; where the river meets the sea; fishing boats; nets that dry in the sun; the calls of the sailors; fisherman; buy fresh fish; heavy stone; older than the village
forest; behind the last houses of the village; tall oaks; mushrooms between the roots; birds and falling leaves; hunter; collect berries; ; older than any story
mill; beside the stream; a great wooden wheel; sacks full of flour; the turning of the wheel; miller; bring their grain; dark wood; almost two hundred years old
market; in the middle of the town; baskets of apples; colourful cloth; the voices of the traders; baker; buy bread and cheese; many wooden stalls; as old as the town
bridge; over the wide river; the clear water below; swallows under the arch; the rushing of the water; ferryman; cross the river; grey stone; built by people long ago
garden; behind the old house; roses along the wall; rows of beans; bees and small birds; gardener; sit in the shade; warm earth and low walls; well kept and very old
library; next to the town hall; shelves up to the ceiling; maps of distant lands; the turning of pages; librarian; read in silence; red brick; full of old books
school; on the road to the church; wooden desks; drawings on the wall; children who sing; teacher; learn to read and write; yellow brick; painted anew every spring
mountain; to the north of the valley; snow on the top; a path between the rocks; stones that roll and the cry of an eagle; shepherd; climb to the top; ; higher than the clouds
river; between the hills and the town; clear water; willows on the bank; water that runs over stones; ferryman; fish and swim; ; deep and never in a hurry
village; at the foot of the hill; red roofs; smoke from the chimneys; bells in the evening; blacksmith; meet their friends; ; small and friendly
island; far out in the sea; white beaches; nests of sea birds; the waves on every side; sailor; look for shells; ; wild and lonely
castle; on the hill above the town; strong walls; a gate with an iron door; the flags in the wind; guard; walk along the walls; great blocks of stone; the oldest building in the land
bakery; at the corner of the market; loaves in the window; a big oven; the crackling of the fire; baker; buy warm bread; brick and wood; older than its baker
farm; at the end of the dusty road; fields of wheat; a barn with a green door; hens and cows; farmer; buy milk and eggs; wood and clay; passed from father to son
lake; in the middle of the forest; water lilies; a small rowing boat; frogs in the evening; fisherman; swim in the summer; ; deep and still
valley; between two mountains; green meadows; little white houses; cow bells; shepherd; walk along the stream; ; quiet and wide
station; at the edge of the town; long rails; people with heavy bags; the whistle of the train; station master; wait for the train; iron and glass; known for its large clock
tower; at the end of the wall; the whole town; clouds that pass by; the beating of the great clock; clockmaker; look over the roofs; old stone; very old and very tall
workshop; in a narrow street; tools on the wall; shavings on the floor; hammers and saws; carpenter; have things repaired; wood and stone; full of the smell of oil
museum; on the main square; old paintings; coins in glass boxes; soft steps on the floor; painter; learn about the past; white marble; open every day but Monday
meadow; between the river and the forest; yellow flowers; butterflies in the sun; crickets in the grass; beekeeper; lie in the grass; ; bright and wide
beach; below the cliffs; smooth stones; shells in the sand; the waves that come and go; sailor; walk by the water; sand and smooth stones; wide when the tide is low
""")

PEOPLE = _table("place tool tool2 task task2 gives trait worry", """
lighthouse keeper; in a lighthouse above the sea; a lamp; a long telescope; light the great lamp; write down the ships of the day; the light that guides the ships; patient and watchful; the storms of autumn
baker; in a small bakery at the market; a large oven; a wooden spoon; bake the bread before sunrise; sell cakes to the children; the warm bread; cheerful and hard working; the price of flour
farmer; on a farm outside the village; a plough; a strong cart; feed the animals; mend the fences; the milk and the eggs; calm and strong; the weather
fisherman; in a boat on the bay; a net; a sharp knife; go out to sea; repair the nets; the fresh fish; brave and silent; the high waves
teacher; in the school of the village; a piece of chalk; a big map; teach the children to read; walk in the garden; the good lessons; kind and patient; the noise in the last row
gardener; in the garden of the castle; a spade; a watering can; water the flowers; talk to the roses; the beautiful flowers; gentle and careful; the late frost
clockmaker; in a little shop below the tower; a tiny screwdriver; a magnifying glass; repair the clocks; listen to the ticking; the clocks that are never late; precise and quiet; the missing wheels
miller; in the mill beside the stream; a millstone; a strong rope; grind the grain; sit by the water; the fine flour; strong and honest; the dry summers
shepherd; on the hills above the valley; a long stick; a warm coat; lead the sheep to the grass; play a small flute; the soft wool; patient and gentle; the wolves in winter
carpenter; in a workshop full of wood; a saw; a hammer; build tables and chairs; carve small animals; the strong tables; skilled and calm; the wet wood
sailor; on a ship with white sails; a compass; a thick rope; climb the mast; tell stories of distant lands; the stories from the sea; brave and merry; the long calm without wind
doctor; in a house near the church; a leather bag; a clean bandage; visit the sick; read old books; the good advice; kind and calm; the cold nights of winter
librarian; in the library of the town; a catalogue; a tall ladder; put the books in order; read to the children; the right book at the right time; quiet and clever; the mice in the cellar
painter; in a bright room under the roof; a brush; a box of colours; paint the sea and the sky; look at the clouds; the colourful pictures; curious and dreamy; the short days of winter
postman; on the roads between the villages; a leather bag; an old bicycle; bring the letters; talk with everyone; the letters and the news; friendly and fast; the angry dogs
tailor; in a shop in a narrow street; a needle; a pair of scissors; sew coats and dresses; choose new cloth; the warm coats; exact and polite; the lost buttons
beekeeper; between the hives on the meadow; a veil; a wooden frame; look after the bees; fill the jars; the sweet honey; slow and gentle; the rainy springs
blacksmith; in a smithy by the road; a heavy hammer; an anvil; shoe the horses; sharpen the knives; the strong iron tools; strong and loud; the cold fire
potter; in a house with a big kiln; a turning wheel; a wet sponge; shape bowls from clay; paint the cups; the round bowls; calm and skilled; the cracks in the clay
ferryman; at the bank of the river; a long pole; a flat boat; bring people across the river; watch the water; the safe crossing; steady and silent; the spring floods
station master; in the station of the town; a whistle; a large watch; send the trains on their way; water the flowers on the platform; the trains that are on time; exact and polite; the snow on the rails
guard; at the gate of the castle; a ring of keys; a bright lantern; lock the gate at night; talk with the cook; the quiet nights; watchful and honest; the dark corners
cook; in the kitchen of the castle; a copper pot; a sharp knife; cook soup for everyone; try new spices; the good soup; cheerful and quick; the empty pantry
hunter; in a hut in the forest; a pair of boots; a warm coat; follow the tracks; make a fire; the knowledge of the forest; silent and patient; the deep snow
""")

THINGS = {
    "rain": dict(phrase="the rain", first="Rain falls from [grey|dark|heavy] clouds and brings water to the [land|fields].", rest=[
        "It fills the rivers and the lakes.", "[Farmers|Gardeners] are happy when it rains after a dry [week|month].",
        "When the rain stops, you can sometimes see a rainbow.", "Many animals hide under leaves until the rain is over.",
        "Without rain, nothing could grow.", "The sound of rain on the roof makes many people [sleepy|calm].",
        "After the rain the air smells [fresh|of wet earth]."]),
    "snow": dict(phrase="the snow", first="Snow falls in winter, when the air is [cold|below the freezing point].", rest=[
        "It covers the roofs and the fields like a white blanket.", "Children like to build snowmen and [ride their sleds|throw snowballs].",
        "Every snowflake has six arms and a different shape.", "In the snow you can see the tracks of [the fox|deer and hares].",
        "When the sun comes out, the snow begins to melt.", "The world is very quiet when it snows."]),
    "sea": dict(phrase="the sea", first="The sea is [wide|deep] and [blue|grey|never quite still].", rest=[
        "Its water is salty, and nobody can drink it.", "Ships cross the sea to bring [goods|people] from one land to another.",
        "Many fish, crabs and whales live below the waves.", "Twice a day the water rises and falls, and this is called the tide.",
        "Sailors look at the stars to find their way over the sea.", "On stormy days the waves are higher than a house."]),
    "moon": dict(phrase="the moon", first="The moon [shines at night|lights the night] and changes its shape from day to day.", rest=[
        "A full moon is round and so bright that you can see your shadow.", "It takes about a month to travel once around the earth.",
        "The moon has no light of its own, it only gives back the light of the sun.", "The moon pulls at the sea and makes the tides.",
        "[Owls|Wolves|Sailors] know the moon better than most people.", "When there is no moon, the stars are easier to see."]),
    "sun": dict(phrase="the sun", first="The sun gives us light and warmth [every day|from morning to evening].", rest=[
        "It rises in the east and sets in the west.", "In summer it stands high in the sky, in winter it stays low.",
        "Plants need the light of the sun to grow.", "Without the sun, the earth would be dark and cold.",
        "Cats and turtles love to lie in the sun.", "When it sets, the sky turns red and golden."]),
    "winter": dict(phrase="the winter", first="Winter is the coldest time of the year.", rest=[
        "The days are short and the nights are long.", "The lake freezes, and children [skate|slide] on the ice.",
        "Many animals sleep in winter, and others look for food under the snow.", "People sit by the fire and tell [stories|old tales].",
        "The trees have no leaves, and the birds fly to the south.", "In the kitchen there is hot soup [every day|in the evening]."]),
    "spring": dict(phrase="the spring", first="In spring the days become longer and the snow melts.", rest=[
        "The first flowers open their petals in the sun.", "Birds come back from the south and build their nests.",
        "The farmer begins to work in the fields.", "Rivers are full of cold, clear water.", "Young [lambs|rabbits] play on the meadow.",
        "Everything smells of earth and fresh grass."]),
    "summer": dict(phrase="the summer", first="Summer is the warmest time of the year.", rest=[
        "The evenings are long and full of light.", "Children swim in the lake and eat ripe cherries.", "The wheat turns golden in the fields.",
        "Bees visit every flower in the garden.", "Sometimes the heat ends with a great thunderstorm.", "At noon everyone rests in the shade."]),
    "autumn": dict(phrase="the autumn", first="In autumn the leaves turn red, yellow and brown.", rest=[
        "The apples are ripe, and the farmer brings in the harvest.", "Fog lies over the fields in the morning.",
        "Squirrels hide their nuts for the winter.", "The wind shakes the trees until the last leaf falls.",
        "Storms come from the sea, and the nights grow cold.", "It is a good time to collect mushrooms."]),
    "storm": dict(phrase="the storm", first="A storm is a strong wind that [often brings rain and thunder|bends the trees].", rest=[
        "The sky turns dark before it begins.", "Lightning comes first, and then you hear the thunder.", "Ships stay in the harbour until it is over.",
        "It is best to stay inside and close the windows.", "After the storm, broken branches lie on the road.",
        "The lighthouse keeper never sleeps during a storm."]),
    "bread": dict(phrase="bread", first="Bread is made of flour, water and a little salt.", rest=[
        "The baker mixes the dough early in the morning.", "The dough has to rest in a warm place until it has grown.",
        "Then it is baked in a hot oven until the crust is brown.", "Fresh bread smells so good that nobody can wait.",
        "People eat it with butter, cheese or honey.", "Old bread can still be used for soup."]),
    "honey": dict(phrase="honey", first="Honey is sweet and golden, and it is made by bees.", rest=[
        "The bees collect nectar from many flowers.", "They store the honey in small cells of wax.", "The beekeeper takes only a part of it.",
        "Honey tastes good on warm bread.", "Bears love honey more than anything else.", "A jar of honey can be kept for many years."]),
    "clock": dict(phrase="the clock", first="A clock shows the hours and the minutes of the day.", rest=[
        "Inside there are many small wheels that turn together.", "The long hand moves faster than the short hand.",
        "The clockmaker opens it with a tiny screwdriver.", "If nobody winds it, it will stop.", "The great clock of the tower can be heard in the whole town.",
        "A good clock is never late."]),
    "ship": dict(phrase="the ship", first="A ship carries people and goods over the sea.", rest=[
        "It has a strong mast and white sails.", "The captain reads the map and watches the wind.", "The sailors climb up to set the sails.",
        "At night they look for the light of the lighthouse.", "In the harbour it is loaded with boxes and barrels.", "A long journey can take many weeks."]),
    "tree": dict(phrase="the tree", first="A tree grows slowly, but it can become older than a house.", rest=[
        "Its roots hold it in the ground and drink the water of the earth.", "In spring it grows new leaves, and in autumn it lets them fall.",
        "Birds build their nests in its branches.", "A carpenter can make tables and chairs from its wood.", "In summer people sit in its shade.",
        "Every year adds one more ring to the trunk."]),
    "train": dict(phrase="the train", first="A train runs on long rails from town to town.", rest=[
        "The station master blows the whistle, and the train begins to move.", "People look out of the window at the fields and the hills.",
        "A train can carry coal, wood and many letters.", "In the tunnel it is dark for a short while.", "Children like to wave when it passes.",
        "Sometimes the snow is so deep that it has to wait."]),
}

NAMES = [(n, "she", "her", "her") for n in "Anna Clara Emma Greta Ida Julia Lena Maria Nora Olga Rosa Sofia Tilda Vera Wilma Martha Lucy Helen".split()] + \
        [(n, "he", "him", "his") for n in "Anton Ben Carl David Emil Felix Georg Hugo Jacob Karl Leo Max Otto Paul Simon Tom Viktor Walter".split()]

COLOURS = "red blue green yellow white black brown grey orange purple pink golden silver copper violet crimson".split()
OBJECTS = ("lamp box door chair table bottle basket bell boat book bag hat coat cup key drum flag kite ladder mirror "
           "pencil plate ring rope scarf shoe spoon stone sword tent ticket tray trunk umbrella vase wagon wheel window "
           "bucket candle carpet clock crown desk engine feather glove guitar hammer helmet jar kettle lantern map "
           "medal pillow pot purse rocket saddle statue train").split()
TREASURES = "lantern key box ring coat hat map bell scarf basket book bag cup umbrella blanket jar candle".split()
