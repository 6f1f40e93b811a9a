import torch, funcvae as fv, traceback
from torch import nn
from funcvae import estimators as E, tree
from funcvae.estimators import parse
from tests.support.discrete import bernoulli_model, categorical_model, X
def t(name, f):
    try: print(name, '->', f())
    except Exception as e: print(name, 'RAISED', type(e).__module__+'.'+type(e).__name__, str(e)[:400].replace('\n','\\n'))
model,params,state=bernoulli_model()
from tests.estimators.test_from_points import made
eps=fv.noise.iid(fv.random.key(1),4,(1,2),dtype=torch.float64)
e=made()
t('bound', lambda: e.bound(model,params,state,X,eps))
t('bound chunk', lambda: E.in_chunks(e,2).bound(model,params,state,X,eps))
t('call', lambda: e(model,params,state,X,eps,train=False).bound)
t('call chunk', lambda: E.in_chunks(e,2)(model,params,state,X,eps,train=False).bound)
# arm overflow
class Enc(nn.Module):
    def __init__(s, v):
        super().__init__(); s.logits=nn.Parameter(torch.tensor([0.,.5]+[v]*4))
    def forward(s,x): return s.logits.expand(len(x),-1)
for v in (-60.,-75.,-85.,-90.,-100.,-103.,15.,17.,30.):
    m=fv.vae(encoder=lambda: Enc(v), decoder=lambda: nn.Linear(6,20), latent=6, posterior=fv.heads.bernoulli, prior=fv.priors.bernoulli)
    p,s=m.init(fv.random.key(0))
    x=fv.random.bernoulli(fv.random.key(3),.3,(8,20)).float()
    ep=fv.noise.iid(fv.random.key(1),8,(8,6))
    out=E.arm()(m,p,s,x,ep,train=True)
    p64=tree.map(torch.Tensor.double,p)
    o64=E.arm()(m,p64,s,x.double(),ep.double(),train=True)
    print(v, out.grads['encoder']['logits'][1:4].tolist(), o64.grads['encoder']['logits'][1:4].tolist())
# points misuse
cl=fv.Claims("ELBO",True,True,(),posterior="any")
w=lambda f,s: fv.Weights(torch.zeros_like(f),torch.zeros_like(f),torch.full_like(f,1/len(f)))
t('Points(3)', lambda: E.from_points(E.Points(3),w,bound=fv.bounds.elbo,claims=cl)(model,params,state,X,eps,train=True).bound)
t('draws 0', lambda: E.from_points(E.Points(lambda q,e:q.sample(e),draws=0),w,bound=fv.bounds.elbo,claims=cl)(model,params,state,X,eps,train=True).bound)
t('draws 0 M2', lambda: E.from_points(E.Points(lambda q,e:torch.cat([q.sample(e)]*2),draws=0),w,bound=fv.bounds.elbo,claims=cl)(model,params,state,X,eps,train=True).bound)
t('draws 2 M=N', lambda: E.from_points(E.Points(lambda q,e:q.sample(e),draws=2),w,bound=fv.bounds.elbo,claims=cl)(model,params,state,X,eps,train=True).bound)
t('draws str', lambda: E.from_points(E.Points(lambda q,e:q.sample(e),draws='a'),w,bound=fv.bounds.elbo,claims=cl)(model,params,state,X,eps,train=True).bound)
t('dtype', lambda: E.from_points(lambda q,e:q.sample(e).float(),w,bound=fv.bounds.elbo,claims=cl)(model,params,state,X,eps,train=True).bound)
t('points 3', lambda: E.from_points(3,w,bound=fv.bounds.elbo,claims=cl))
t('breaks bad', lambda: fv.variance.exact(E.from_points(E.Points(lambda q,e:q.sample(e),breaks=lambda q: q.mean),w,bound=fv.bounds.elbo,claims=cl),model,params,state,X,samples=1).bound)
t('breaks bad2', lambda: fv.variance.exact(E.from_points(E.Points(lambda q,e:q.sample(e),breaks=lambda q: 3),w,bound=fv.bounds.elbo,claims=cl),model,params,state,X,samples=1).bound)
