"""How the scripted teacher translates: word by word out of a small glossary, else sound by sound.

Into Chinese only. Code, URLs, placeholders, numbers and names stay. The result is labelled, and no
translation that anyone should read: it shows that the pipeline works.
"""

import re
from functools import cache

from engine.language import UNCHANGED
from engine.languages import Language

CHINESE_LABEL = "（脚本译文）"

# Words that instructions are made of. An empty value: a word that Chinese does without.
GLOSSARY_LINES = """
a,an,the,to,of,is,are,be,do,does,was,were=|about=关于|above=以上|advantages=优点|age=年龄|all=所有|and=和
animal,animals=动物|answer=回答|any=任何|apple=苹果|article=文章|ask=问|at,in,on=在|autumn=秋天|bad=坏
balcony=阳台|because=因为|best=最好的|better=更好|between=之间|big=大|book,books=书|boat=船|breakfast=早餐
brief,briefly=简短|but=但是|by=由|can=可以|cannot=不能|cat=猫|change=改变|check=检查|child=孩子|city=城市
classify=分类|clock=时钟|colleague=同事|colour,color=颜色|command=命令|compare=比较|computer=电脑
convert=转换|correct=改正|country=国家|create=创建|customer,customers=顾客|data=数据|day,days=天
decide=判断|define=定义|describe=描述|design=设计|difference=区别|each=每个|easy=容易|edit=编辑|e-mail=邮件
email=邮件|english=英语|even=偶数|example,examples=例子|explain=解释|false=假|file=文件|find=找出|five=五
following=以下|food=食物|for=为|four=四|french=法语|friend=朋友|from=从|fruit=水果|function=函数
generate=生成|given=给定的|give=给出|good=好|group=组|have,has=有|help=帮助|home=家|hour=小时|house=房子
how=如何|human=人|idea,ideas=想法|if=如果|information=信息|into=成|it=它|item,items=项目|job=工作
kind=种类|lake=湖|language=语言|large=大|larger=较大|largest=最大|learn=学习|letter,letters=信|life=生活
light=光|line,lines=行|list=列出|live=住|long=长|loop=循环|make=制作|many=多少|meaning=意思|means=意思是
message=消息|minutes=分钟|money=钱|more=更多|most=最|music=音乐|my=我的|name=名字|names=名字|negative=消极
new=新|night=夜|no=没有|not=不|number,numbers=数字|one=一个|or=或|order=顺序|paragraph=段落|people=人们
person=人|phrase=短语|plants=植物|poem=诗|polite=礼貌|positive=积极|provide=提供|question=问题|rain=雨
reason,reasons=理由|reply=回复|report=报告|review=评论|rewrite=改写|say=说|school=学校|sea=海|seconds=秒
sentence,sentences=句子|short=短|shorter=更短|should=应该|simple=简单|sky=天空|sleep=睡觉|so=所以|some=一些
song=歌|sound=声音|star=星星|state,states=状态|statement=陈述|step=步骤|story=故事|suggest=建议
summarise,summarize=总结|sunset=日落|table=表|tea=茶|tell=告诉|ten=十|text=文本|that,this=这|them,they=他们
there=那里|these=这些|three=三|through=通过|time=时间|tips=建议|title=标题|train=火车|translate=翻译
travel=旅行|tree=树|true=真|turn=变|two=两个|use=使用|vegetable=蔬菜|verb=动词|very=很|water=水|way=方式
we=我们|weather=天气|weekend=周末|what=什么|when=什么时候|where=哪里|whether=是否|which=哪个|who=谁|why=为什么
will=将|winter=冬天|with=用|without=没有|word,words=词|work=工作|world=世界|write=写|year=年|you=你|your=你的
"""
# What is left is spelt by its consonants, as foreign names are.
SOUNDS = dict(
    zip("bcdfghjklmnpqrstvwxyz", "布克德弗格赫杰卡尔姆恩普奇罗斯特夫沃西伊兹", strict=True)
)  # fmt: skip
NO_SOUND = "某"


_PIECE = re.compile(
    rf"(?P<kept>{UNCHANGED.pattern})|(?P<word>[A-Za-zÀ-ɏ]+(?:['’-][A-Za-zÀ-ɏ]+)*)", UNCHANGED.flags
)
_SPACE = re.compile(r"(?<=[\u4e00-\u9fff]) +(?=[\u4e00-\u9fff])")
_SENTENCE_ENDS = ".!?:…\"'“‘(-"


def translate(text: str, to: Language) -> str:
    """The text word by word; unchanged, and saying so, into a language that has no glossary."""
    if to.code != "zh":
        return f"(scripted: no glossary for {to.name}) {text}"
    return CHINESE_LABEL + _SPACE.sub("", _PIECE.sub(_piece, text))


def _piece(match: re.Match[str]) -> str:
    word = match["word"]
    if word is None:
        return match[0]
    known = _glossary().get(word.lower())
    if known is not None:
        return known
    return word if _is_name(word, match.string, match.start()) else _spelt(word)


@cache
def _glossary() -> dict[str, str]:
    entries = (entry.split("=") for entry in GLOSSARY_LINES.replace("\n", "|").strip("|").split("|"))
    return {word: meaning for words, meaning in entries for word in words.split(",")}


def _is_name(word: str, text: str, start: int) -> bool:
    """A capital inside a sentence makes a name."""
    before = text[max(0, start - 2) : start].strip()
    return word[0].isupper() and start > 0 and bool(before) and before[-1] not in _SENTENCE_ENDS


def _spelt(word: str) -> str:
    return "".join(SOUNDS.get(letter, "") for letter in word.lower()) or NO_SOUND
