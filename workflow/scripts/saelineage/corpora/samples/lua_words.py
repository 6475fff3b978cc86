"""Subjects of the Lua programs: a record per domain, with its fields and their values."""

from typing import NamedTuple


class Domain(NamedTuple):
    """The vocabulary of one subject; names of several words are written with spaces."""

    record: str
    records: str
    numbers: list[str]
    """Names of numeric fields and variables."""
    texts: list[str]
    """Names of string fields and variables."""
    values: list[str]
    """Strings that a text field may hold."""
    verbs: list[str]
    """Verbs for names of functions."""
    purpose: str


# record|records|numbers|texts|values|verbs|purpose; a line that starts with a space continues the one above
TABLE = """item|items|price,quantity,weight,stock,discount|name,category,sku,supplier|hammer,rope,lamp,copper wire,
 paint,glue,bolt|restock,price,pack,count,reserve|keeps track of what is in stock
player|players|score,health,level,speed,armor|name,class,team,title|Ayla,Brom,Cora,Dax,Edda,Finn|attack,heal,
 upgrade,spawn,rank|holds the state of a small game
token|tokens|line,column,width,offset,depth|kind,text,source,label|number,name,string,keyword,operator,comma|scan,
 match,skip,parse,emit|splits source text into tokens
job|jobs|priority,attempts,delay,timeout,cost|id,status,owner,command|build,test,deploy,clean,archive,report|push,
 schedule,retry,cancel,run|runs jobs in order of priority
cell|cells|row,column,value,scale,trace|label,unit,format,mode|sparse,dense,upper,lower,diagonal|fill,add,scale,
 rotate,reduce|does arithmetic on small grids
word|words|length,frequency,position,vowels,lines|text,language,stem,prefix|river,stone,garden,window,silver,autumn|
 wrap,count,trim,align,replace|formats and measures text
packet|packets|size,port,latency,retries,window|host,protocol,payload,address|ping,hello,data,ack,close,reset|send,
 receive,route,encode,verify|simulates a tiny network
account|accounts|balance,rate,limit,fee,transfers|owner,currency,branch,number|Ines Ortega,Paul Lindt,Mei Tan,
 Ravi Rao,Sara Voss|deposit,withdraw,transfer,charge,audit|models accounts at a bank
sensor|sensors|reading,threshold,interval,gain,drift|id,location,unit,model|attic,cellar,greenhouse,roof,north wall,
 pump|calibrate,sample,smooth,report,reset|collects readings from sensors
recipe|recipes|servings,minutes,calories,rating,steps|title,author,cuisine,note|lentil soup,plum cake,flat bread,
 bean stew,rice pudding|bake,scale,plan,rate,shop|plans meals for a week
task|tasks|estimate,progress,urgency,budget,hours|title,assignee,state,tag|write docs,fix login,plan sprint,
 review patch,tune query|assign,finish,estimate,postpone,list|tracks tasks on a board
point|points|x,y,distance,angle,radius|name,color,shape,layer|origin,corner,center,north,edge|move,project,rotate,
 measure,clip|works with points in the plane
song|songs|duration,tempo,plays,year,volume|title,artist,album,genre|Night Ferry,Paper Boats,Slow Lantern,
 Old Harbor,Blue Hour|play,queue,shuffle,skip,mix|manages a playlist
node|nodes|weight,degree,depth,flow,capacity|id,label,parent,color|start,goal,hub,leaf,root,gate|visit,link,expand,
 prune,search|walks over graphs
ship|ships|fuel,cargo,crew,range,speed|name,captain,port,route|Marlin,Petrel,Northern Star,Kestrel,Old Anna|load,
 dock,sail,refuel,tow|simulates traffic in a harbor
crop|crops|yield,water,rows,days,profit|name,soil,season,field|barley,beans,maize,onions,squash|plant,water,harvest,
 rotate,sell|simulates a small farm
student|students|grade,age,credits,absences,points|name,course,room,tutor|Noor,Emil,Lotte,Jonas,Aiko,Sami|enroll,
 grade,promote,rank,average|keeps the marks of a class
event|events|time,count,weight,delay,index|topic,source,message,level|start,stop,tick,error,resize,click|emit,
 handle,filter,replay,log|passes events to listeners
book|books|pages,copies,year,rating,loans|title,author,genre,shelf|The Long Road,Salt and Tin,A Quiet House,
 Winter Maps|lend,return,shelve,find,order|runs a lending library
tile|tiles|x,y,height,moves,value|kind,texture,biome,symbol|grass,water,sand,stone,forest,wall|draw,flip,paint,step,
 generate|builds maps out of tiles"""


def domains() -> list[Domain]:
    """Return every domain of the table."""
    return [_domain(row) for row in TABLE.replace("\n ", "").split("\n")]


def _domain(row: str) -> Domain:
    record, records, *lists, purpose = row.split("|")
    numbers, texts, values, verbs = [names.split(",") for names in lists]
    return Domain(record, records, numbers, texts, values, verbs, purpose)
